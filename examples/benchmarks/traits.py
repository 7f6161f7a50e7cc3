"""Do Prompt-CAM's maps find traits better than what one would use without it? One table.

    python examples/benchmarks/traits.py --model runs/birds --data photos/ --output traits.json

`photos/` is a folder with masks of parts, as `promptcam_hf/data/parts.py` describes it. Without Prompt-CAM one would train a
linear probe on the same frozen backbone and ask by some method where it looks (`linear_probe.py`). The probe is trained
here, on [CLS] after the final norm, of the training photographs and of augmented views of them: logistic regression on
standardised features, L-BFGS until it converges, with the L2 penalty that does best on a held-out fifth. The methods:

- [CLS] attention: of [CLS] on the patches in the last layer, a map a head. Heads are ranked for the class by greedy
  blurring, as Prompt-CAM's are (a blurred head attends to all tokens alike), so that what differs is the prompts.
- [CLS] attention, mean of the heads. The same for every class, as is the next one.
- Attention roll-out (Abnar and Zuidema, ACL 2020): the row of [CLS] in the product, over all layers, of (mean attention
  of the heads + identity) / 2.
- Grad-CAM (Selvaraju et al., ICCV 2017), by captum: of the class's logit, on the patches after the first norm of the
  last layer, where they are read for the last time. A patch is a pixel of the feature map.
- Layer-CAM (Jiang et al., TIP 2021), gradients and activations by captum: in the same place, each activation times its
  own gradient where that is positive, summed over channels; a negative sum counts as 0.
- Random maps: a floor for each classifier. A method with one map has the same figure for its first map as for four.
- With the masks, which nobody has of a photograph, so that other rows can be understood: *the masks*, first the parts
  that tell the class apart, then the rest of the animal; and Prompt-CAM's maps, *on the animal alone*.

All figures but accuracy are of the test photographs that both classifiers get right, so that rows compare. Pointing and
attention are as `promptcam_hf/evaluation/trait_metrics.py` defines them. Insertion and deletion ask whether a map is faithful
to the classifier that it explains, so they are of that one. How sure it is of itself moves them too: compare them with
those of its random maps. In the last two columns the same maps are tried on the other classifier. That is no measure of
faithfulness, but of whether that one needs what they show as well; down such a column, the judge is the same.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import adaptive_avg_pool2d
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import pipeline

from promptcam_hf import PromptCamForImageClassification
from promptcam_hf.data.parts import PartTable
from promptcam_hf.data.photographs import Photographs, TrainTransform, load_splits
from promptcam_hf.evaluation.evaluation import class_names, with_labels_of
from promptcam_hf.evaluation.trait_metrics import (
    FAITHFULNESS_IMAGES,
    PromptCamExplainer,
    TraitData,
    evaluate_traits,
    where,
)
from promptcam_hf.files import write_atomically

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from examples.benchmarks.linear_probe import LinearProbe, fit_probe

PROMPT_CAM, PROBE = "Prompt-CAM", "linear probe"
Function = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Method:
    """An `Explainer`: maps by some method, and the scores of a classifier."""

    name: str
    logits: Function
    maps: Function


def over(photographs: Photographs, function: Function, batch_size: int, what: str) -> torch.Tensor:
    """A function of `pixel_values` of all photographs."""
    batches = tqdm(DataLoader(photographs, batch_size), desc=what, unit="batch")
    with torch.no_grad():
        return torch.cat([function(batch["pixel_values"]).cpu() for batch in batches])


def masks_on_grid(data: TraitData, table: PartTable, grid: torch.Size) -> Function:
    """A function of images `(B, 3, H, W)` of the data, which are told by their pixels: which share of each patch shows
    a part that tells the class apart, and which the animal, each `(B, 1, h, w)`."""
    shares = {}
    for image in tqdm(data, desc="masks", unit="photo"):
        assert image.mask is not None
        traits = where(image.mask, table, table.distinguishing(data.names[image.label]))
        animal = where(image.mask, table, set(table.names) - table.surroundings) | traits
        shares[image.pixel_values.numpy().tobytes()] = adaptive_avg_pool2d(torch.stack([traits, animal]).float(), grid)

    def of_images(pixel_values: torch.Tensor) -> torch.Tensor:
        return torch.stack([shares[image.numpy().tobytes()] for image in pixel_values])[:, :, None].unbind(1)

    return of_images


def compare(
    model: PromptCamForImageClassification,
    image_processor: Any,
    folder: Path,
    views: int,
    batch_size: int,
    faithfulness_images: int = FAITHFULNESS_IMAGES,
) -> dict[str, Any]:
    """
    Train the probe and measure all methods.

    Returns:
        `penalty` of the probe, `num_images` for testing, `num_both_right`, and `methods`: of each what
        `evaluate_traits` returns, its `classifier`, the `accuracy` of this, and `other_faithfulness`.

    Raises:
        ValueError: If the data do not fit, or no photograph is classified correctly by both.
    """

    def on_device(function: Function) -> Function:
        return lambda *arguments: function(*(argument.to(model.device) for argument in arguments))

    def of_data(split: Any, parts: Path | None = folder) -> TraitData:
        return TraitData(with_labels_of(names, split, splits.names, folder), names, image_processor, parts)

    names, splits = class_names(model), load_splits(folder)
    data, train = of_data(splits.evaluation), of_data(splits.train, None).photographs
    cls = on_device(lambda pixel_values: model.backbone(pixel_values).last_hidden_state[:, 0])
    transforms = [train.transform, *[TrainTransform(image_processor)] * views]
    features = [over(Photographs(train.split, x), cls, batch_size, "features of the probe") for x in transforms]
    classifier, penalty = fit_probe(torch.stack(features), torch.tensor(train.split["label"][:]), len(names))
    probe, promptcam = LinearProbe(model, classifier.to(model.device)), PromptCamExplainer(model)
    logits = {PROMPT_CAM: promptcam.logits, PROBE: on_device(probe)}
    predicted = {of: over(data.photographs, logits[of], batch_size, f"{of} predicts").argmax(-1) for of in logits}
    is_right = {of: predicted[of] == torch.tensor(data.labels) for of in logits}
    both_right = (is_right[PROMPT_CAM] & is_right[PROBE]).nonzero()[:, 0].tolist()
    if not both_right:
        raise ValueError(f"{folder}: both classifiers are right about none of its test photographs.")

    def random(pixel_values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        return torch.rand(len(classes), *shape, generator=generator)

    def the_masks(pixel_values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        traits, animal = masks(pixel_values)
        return traits + 0.01 * animal  # small enough for all of the former to come first

    def on_animal(pixel_values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        _, animal = masks(pixel_values)
        return promptcam.maps(pixel_values, classes).cpu() * animal

    right = splits.evaluation.select(both_right)
    with_parts, without_parts, results = of_data(right), of_data(right, None), []
    shape = promptcam.maps(data[0].pixel_values[None], torch.tensor([0])).shape[1:]
    assert with_parts.table is not None
    masks = masks_on_grid(with_parts, with_parts.table, shape[1:])
    generator = torch.Generator().manual_seed(0)
    methods: list[tuple[str, str, Function]] = [
        (PROMPT_CAM, "Prompt-CAM", promptcam.maps),
        (PROMPT_CAM, "random maps", random),
        (PROBE, "[CLS] attention", on_device(probe.cls_attention)),
        (PROBE, "[CLS] attention, mean", on_device(probe.cls_attention_mean)),
        (PROBE, "attention roll-out", on_device(probe.roll_out)),
        (PROBE, "Grad-CAM", on_device(probe.grad_cam)),
        (PROBE, "Layer-CAM", on_device(probe.layer_cam)),
        (PROBE, "random maps", random),
        (PROMPT_CAM, "Prompt-CAM, on the animal alone", on_animal),
        (PROMPT_CAM, "the masks", the_masks),
    ]
    options = {"batch_size": batch_size, "faithfulness_images": faithfulness_images}
    for of, name, maps in tqdm(methods, desc="methods", unit="method"):
        other = PROBE if of == PROMPT_CAM else PROMPT_CAM
        result = evaluate_traits(Method(name, logits[of], maps), with_parts, **options)
        crossed = evaluate_traits(Method(name, logits[other], maps), without_parts, **options)
        whose = {"classifier": of, "accuracy": float(is_right[of].double().mean())}
        results.append(whose | result | {"other_faithfulness": crossed["faithfulness"]})
    return {"penalty": penalty, "num_images": len(data), "num_both_right": len(both_right), "methods": results}


# Heading, figure, what chance would have, format
COLUMNS = [
    ("classifier", "classifier", None, ""),
    ("maps", "explainer", None, ""),
    ("accuracy", "accuracy", None, ".1%"),
    ("first map points at a trait", "pointing/at_distinguishing/top1", "pointing/at_distinguishing/chance", ".1%"),
    ("sum of four", "pointing/at_distinguishing/top4_sum", "pointing/at_distinguishing/chance", ".1%"),
    ("one of four", "pointing/at_distinguishing/top4", "pointing/at_distinguishing/chance_top4", ".1%"),
    ("first map points at a mark", "pointing/at_marks/top1", "pointing/at_marks/chance", ".1%"),
    ("attention on traits", "mass/on_distinguishing", "mass/area_distinguishing", ".1%"),
    ("on the rest of the animal", "mass/on_rest_of_animal", "mass/area_rest_of_animal", ".1%"),
    ("on the background", "mass/on_background", "mass/area_background", ".1%"),
    ("insertion", "faithfulness/insertion", None, ".3f"),
    ("deletion", "faithfulness/deletion", None, ".3f"),
    ("insertion, other classifier", "other_faithfulness/insertion", None, ".3f"),
    ("deletion, other classifier", "other_faithfulness/deletion", None, ".3f"),
]


def table(report: dict[str, Any]) -> str:
    """Markdown; in the last row is what chance would have, which is the same for all."""

    def cell(row: dict[str, Any], path: str | None, form: str) -> str:
        value: Any = None if path is None else reduce(lambda figures, key: figures[key], path.split("/"), row)
        return "-" if value is None else format(value, form)

    first = report["methods"][0]
    rows = [[heading for heading, *_ in COLUMNS], ["---"] * len(COLUMNS)]
    rows += [[cell(row, path, form) for _, path, _, form in COLUMNS] for row in report["methods"]]
    rows.append(["", "chance", *(cell(first, path, form) for _, _, path, form in COLUMNS[2:])])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint of a trained Prompt-CAM")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with train/, test/, test_parts/ and parts.json"
    )
    parser.add_argument("--output", type=Path, help="JSON file to write all figures to")
    parser.add_argument("--views", type=int, default=4, help="augmented views of a photograph that the probe trains on")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--faithfulness-images", type=int, default=FAITHFULNESS_IMAGES, help="images for insertion and deletion"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    torch.manual_seed(0)  # of the views
    task: Any = "prompt-cam"  # `pipeline` is typed for transformers' own tasks
    try:
        traits = pipeline(task, model=str(args.model), device=args.device)
        report = compare(
            traits.model.float(),
            traits.image_processor,
            args.data,
            args.views,
            args.batch_size,
            args.faithfulness_images,
        )
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{report['num_both_right']} of {report['num_images']} test photographs are classified correctly by both.\n")
    print(table(report))
    if args.output:
        write_atomically(
            args.output, json.dumps({"model": args.model.name, "data": args.data.name, **report}, indent=2)
        )


if __name__ == "__main__":
    main()
