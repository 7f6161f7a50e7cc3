"""Do Prompt-CAM's maps find traits better than the alternatives? One table.

    python examples/benchmarks/traits.py --model runs/birds --data photos/ --output traits.json

`photos/` may be a folder with masks of parts, as described in `promptcam_hf/data/parts.py`. Without masks, only
accuracy, insertion and deletion are measured; `faithfulness.py` does that for each photograph, with intervals, and goes
on where it was interrupted. The alternative to Prompt-CAM is a linear probe on the same frozen backbone, and a method
that shows where it looks (`linear_probe.py`). The probe is trained here, on [CLS] after the final norm, of the training
photographs and of augmented views of them: logistic regression on standardised features, by L-BFGS until convergence,
with the L2 penalty that is best on a held-out fifth. The methods:

- [CLS] attention: from [CLS] to the patches in the last layer, one map per head. Heads are ranked for the class by
  greedy blurring, as Prompt-CAM's are (a blurred head attends to all tokens equally), so the prompts are the only
  difference.
- [CLS] attention, mean: averaged over the heads. The same for every class, as is the next one.
- Attention roll-out (Abnar and Zuidema, ACL 2020): the row of [CLS] in the product, over all layers, of (mean attention
  of the heads + identity) / 2.
- Grad-CAM (Selvaraju et al., ICCV 2017), by captum: for the logit of the class, on the patches after the first norm of
  the last layer, which is the last place where they are used. A patch is a pixel of the feature map.
- Finer-CAM (Zhang et al., CVPR 2025): Grad-CAM for the logit of the class less 0.6 times the mean logit of the three
  classes whose weights are most similar to its own (by cosine).
- Layer-CAM (Jiang et al., TIP 2021), gradients and activations by captum: in the same place, each activation times its
  own gradient if that is positive, summed over channels; a negative sum counts as 0.
- LeGrad (Bousselham et al., ICCV 2025): for each layer, what the class's logit would be if that layer were the last
  one. Its gradient by the attention of [CLS] in that layer, where it is positive, averaged over heads and layers and
  scaled to 0..1.
- Of Prompt-CAM itself: the comparison with the runner-up (`PromptCamForImageClassification.compare`, summed over the
  heads, where it is positive), and what is left of it without values and gradients: the attention of the class's prompt
  less that of the runner-up's, summed over the heads, where it is positive.
- Random maps: the lowest score to expect, for each classifier. For a method with a single map, the metrics of the first
  map and of four maps are the same.
- Two rows that use the masks, which are not available for ordinary photographs, to put the others into perspective:
  *the masks* (first the parts that distinguish the class, then the rest of the animal), and Prompt-CAM's maps *on the
  animal alone*.

All metrics except accuracy are for the test photographs that both classifiers get right, so rows are comparable. They
are defined in `promptcam_hf/evaluation/trait_metrics.py` and `faithfulness.py`. Insertion and deletion say whether a
map is faithful to the classifier that it explains, so they use that classifier. They also depend on how confident it
is: compare them with those of its random maps. The last two columns use the other classifier. They do not measure
faithfulness, but whether the other classifier uses the same pixels.
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

from promptcam_hf import PromptCamForImageClassification
from promptcam_hf.checkpoint import open_pipeline
from promptcam_hf.data.parts import PartTable, has_parts
from promptcam_hf.data.photographs import Photographs, TrainTransform
from promptcam_hf.data.splits import load_splits
from promptcam_hf.evaluation.explainers import ComparisonExplainer, PromptCamExplainer
from promptcam_hf.evaluation.faithfulness import FAITHFULNESS_IMAGES
from promptcam_hf.evaluation.prediction import class_names, with_model_labels
from promptcam_hf.evaluation.trait_data import TraitData
from promptcam_hf.evaluation.trait_metrics import animal_region, evaluate_traits, part_region
from promptcam_hf.explanation.shards import model_state
from promptcam_hf.files import as_json, write_atomically

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from examples.benchmarks.linear_probe import LinearProbe, fit_probe

CLASSIFIERS = PROMPT_CAM, PROBE = "Prompt-CAM", "linear probe"
SETTINGS = "settings.json"
Function = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Method:
    """An `Explainer`: the maps of some method, and the scores of a classifier."""

    name: str
    logits: Function
    maps: Function


def for_all(photographs: Photographs, function: Function, batch_size: int, title: str) -> torch.Tensor:
    """The results of a function of `pixel_values`, for all photographs."""
    batches = tqdm(DataLoader(photographs, batch_size), desc=title, unit="batch")
    with torch.no_grad():
        return torch.cat([function(batch["pixel_values"]).cpu() for batch in batches])


def masks_on_grid(data: TraitData, table: PartTable, grid: torch.Size) -> Function:
    """A function of images `(B, 3, H, W)` of the data, which are recognised by their pixels. It returns two shares of
    each patch, each `(B, 1, h, w)`: that of the parts that distinguish the class, and that of the animal."""
    shares = {}
    for image in tqdm(data, desc="masks", unit="photo"):
        assert image.mask is not None
        traits = part_region(image.mask, table, table.distinguishing(data.names[image.label]))
        regions = torch.stack([traits, animal_region(image.mask, table) | traits])
        shares[image.pixel_values.numpy().tobytes()] = adaptive_avg_pool2d(regions.float(), grid)

    def shares_of(pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.stack([shares[image.numpy().tobytes()] for image in pixel_values])[:, :, None].unbind(1)

    return shares_of


class Comparison:
    """
    All methods on one dataset. The probe is trained by the constructor.

    Args:
        model: The Prompt-CAM.
        image_processor: The model's image processor.
        folder: The data, with or without parts.
        views: Number of augmented views per photograph that the probe is trained on, besides the photograph itself.
        batch_size: Photographs per forward pass.
        probe_file: Where to keep the trained probe and what both classifiers get right. If it is there, neither is
            computed again.

    Raises:
        ValueError: If the data do not fit, or both classifiers are right on no photograph.
    """

    def __init__(
        self,
        model: PromptCamForImageClassification,
        image_processor: Any,
        folder: Path,
        views: int,
        batch_size: int,
        probe_file: Path | None = None,
    ):
        self.model, self.image_processor, self.folder = model, image_processor, folder
        self.batch_size, self.names, self.splits = batch_size, class_names(model), load_splits(folder)
        part_folder = folder if has_parts(folder) else None
        data = self.trait_data(self.splits.evaluation, part_folder)
        self.promptcam = PromptCamExplainer(model)
        if probe_file is not None and probe_file.is_file():
            weight, bias, self.penalty, is_correct = torch.load(probe_file, weights_only=True)
            self.probe = self.probe_of(weight, bias)
        else:
            self.probe, self.penalty = self.train_probe(views)
            scores = for_all(data.photographs, lambda x: self.scores(x).transpose(0, 1), batch_size, "predictions")
            is_correct = (scores.argmax(-1) == torch.tensor(data.labels)[:, None]).T  # (2, n)
            if probe_file is not None:
                weight, bias = (values.cpu() for values in (self.probe.classifier.weight, self.probe.classifier.bias))
                torch.save((weight, bias, self.penalty, is_correct), probe_file)
        self.is_correct = dict(zip(CLASSIFIERS, is_correct, strict=True))
        self.logits: dict[str, Function] = {PROMPT_CAM: self.promptcam.logits, PROBE: self.on_device(self.probe)}
        both = (self.is_correct[PROMPT_CAM] & self.is_correct[PROBE]).nonzero()[:, 0].tolist()
        if not both:
            raise ValueError(f"{folder}: there is no test photograph on which both classifiers are right.")
        split = self.splits.evaluation.select(both)
        self.with_parts, self.without_parts = self.trait_data(split, part_folder), self.trait_data(split, None)
        self.num_images = len(data)

    def trait_data(self, split: Any, part_folder: Path | None) -> TraitData:
        split = with_model_labels(split, self.splits.names, self.names, self.folder)
        return TraitData(split, self.names, self.image_processor, part_folder)

    @torch.no_grad()
    def scores(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Scores `(2, B, C)` of both classifiers for images `(B, 3, H, W)`: float64, on the CPU. If prompts enter only
        the last layer, the layers before it are computed once for both."""
        if self.model.config.first_prompted_layer == self.model.num_layers:
            features = self.model.frozen_features(pixel_values.to(self.model.device))
            scores = [self.model(features=features).logits, self.probe.from_features(features)]
        else:
            scores = [self.promptcam.logits(pixel_values), self.on_device(self.probe)(pixel_values)]
        return torch.stack([of_one.double().cpu() for of_one in scores])

    def on_device(self, function: Function) -> Function:
        return lambda *arguments: function(*(argument.to(self.model.device) for argument in arguments))

    def train_probe(self, views: int) -> tuple[LinearProbe, float]:
        """The probe, and the penalty that was chosen for it."""
        train = self.trait_data(self.splits.train, None).photographs
        cls = self.on_device(lambda pixel_values: self.model.backbone(pixel_values).last_hidden_state[:, 0])
        transforms = [train.transform, *[TrainTransform(self.image_processor)] * views]
        features = [
            for_all(Photographs(train.split, transform), cls, self.batch_size, "features for the probe")
            for transform in transforms
        ]
        labels = torch.tensor(train.split["label"][:])
        classifier, penalty = fit_probe(torch.stack(features), labels, len(self.names))
        return self.probe_of(classifier.weight, classifier.bias), penalty

    def probe_of(self, weight: torch.Tensor, bias: torch.Tensor) -> LinearProbe:
        classifier = torch.nn.Linear(weight.shape[1], weight.shape[0]).requires_grad_(False)
        classifier.load_state_dict({"weight": weight, "bias": bias})
        return LinearProbe(self.model, classifier.to(self.model.device))

    def methods(self) -> list[tuple[str, str, Function]]:
        """Classifier, name and maps of each method, and of the rows that use the masks if there are any."""
        return self.methods_without_masks() + ([] if self.with_parts.table is None else self.methods_with_masks())

    def map_shape(self) -> torch.Size:
        """(heads, h, w)."""
        return self.promptcam.maps(self.with_parts[0].pixel_values[None], torch.tensor([0])).shape[1:]

    def methods_without_masks(self) -> list[tuple[str, str, Function]]:
        """Classifier, name and maps of each method that needs nothing but images."""
        shape = self.map_shape()
        generator = torch.Generator().manual_seed(0)

        def random(pixel_values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
            return torch.rand(len(classes), *shape, generator=generator)

        def attention_difference(pixel_values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
            runners_up = self.model.compare(pixel_values, classes).b
            pair = torch.stack([classes, runners_up], dim=1)
            of_a, of_b = self.model.rank_heads(pixel_values, pair).trait_maps.sum(2).unbind(1)  # (B, h, w)
            return (of_a - of_b).clamp_min(0)[:, None]

        return [
            (PROMPT_CAM, "Prompt-CAM", self.promptcam.maps),
            (PROMPT_CAM, "comparison", ComparisonExplainer(self.model).maps),
            (PROMPT_CAM, "difference of attention", self.on_device(attention_difference)),
            (PROMPT_CAM, "random maps", random),
            (PROBE, "[CLS] attention", self.on_device(self.probe.cls_attention)),
            (PROBE, "[CLS] attention, mean", self.on_device(self.probe.cls_attention_mean)),
            (PROBE, "attention roll-out", self.on_device(self.probe.roll_out)),
            (PROBE, "Grad-CAM", self.on_device(self.probe.grad_cam)),
            (PROBE, "Layer-CAM", self.on_device(self.probe.layer_cam)),
            (PROBE, "Finer-CAM", self.on_device(self.probe.finer_cam)),
            (PROBE, "LeGrad", self.on_device(self.probe.legrad)),
            (PROBE, "random maps", random),
        ]

    def methods_with_masks(self) -> list[tuple[str, str, Function]]:
        """The two rows that use the masks."""
        assert self.with_parts.table is not None
        shares_of = masks_on_grid(self.with_parts, self.with_parts.table, self.map_shape()[1:])

        def the_masks(pixel_values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
            traits, animal = shares_of(pixel_values)
            return traits + 0.01 * animal  # a weight so small that all of the traits come first

        def on_animal(pixel_values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
            _, animal = shares_of(pixel_values)
            return self.promptcam.maps(pixel_values, classes).cpu() * animal

        return [
            (PROMPT_CAM, "Prompt-CAM, on the animal alone", on_animal),
            (PROMPT_CAM, "the masks", the_masks),
        ]

    def measure(self, faithfulness_images: int = FAITHFULNESS_IMAGES) -> dict[str, Any]:
        """
        Measure all methods.

        Returns:
            `penalty` of the probe; `num_images`, the number of test photographs; `num_both_right`; and `methods`: for
            each what `evaluate_traits` returns, its `classifier`, the classifier's `accuracy`, and
            `other_faithfulness`, the faithfulness to the other classifier.
        """
        options = {"batch_size": self.batch_size, "faithfulness_images": faithfulness_images}
        rows = []
        for classifier, name, maps in tqdm(self.methods(), desc="methods", unit="method"):
            other = PROBE if classifier == PROMPT_CAM else PROMPT_CAM
            own = evaluate_traits(Method(name, self.logits[classifier], maps), self.with_parts, **options)
            crossed = evaluate_traits(Method(name, self.logits[other], maps), self.without_parts, **options)
            accuracy = float(self.is_correct[classifier].double().mean())
            row = {"classifier": classifier, "accuracy": accuracy, **own}
            rows.append(row | {"other_faithfulness": crossed["faithfulness"]})
        counts = {"num_images": self.num_images, "num_both_right": len(self.with_parts)}
        return {"penalty": self.penalty, **counts, "methods": rows}


# Heading, key of the value, key of the chance level, format
COLUMNS = [
    ("classifier", "classifier", None, ""),
    ("maps", "explainer", None, ""),
    ("accuracy", "accuracy", None, ".1%"),
    ("pointing game, first map", "pointing/at_distinguishing/top1", "pointing/at_distinguishing/chance", ".1%"),
    ("sum of four", "pointing/at_distinguishing/top4_sum", "pointing/at_distinguishing/chance", ".1%"),
    ("one of four", "pointing/at_distinguishing/top4", "pointing/at_distinguishing/chance_top4", ".1%"),
    ("first map, mark", "pointing/at_marks/top1", "pointing/at_marks/chance", ".1%"),
    ("attention on distinguishing parts", "mass/on_distinguishing", "mass/area_distinguishing", ".1%"),
    ("on the rest of the animal", "mass/on_rest_of_animal", "mass/area_rest_of_animal", ".1%"),
    ("on the background", "mass/on_background", "mass/area_background", ".1%"),
    ("insertion", "faithfulness/insertion", None, ".3f"),
    ("deletion", "faithfulness/deletion", None, ".3f"),
    ("insertion, other classifier", "other_faithfulness/insertion", None, ".3f"),
    ("deletion, other classifier", "other_faithfulness/deletion", None, ".3f"),
]


def table(report: dict[str, Any]) -> str:
    """The report as a Markdown table. The last row is the chance level, which is the same for all methods."""

    def cell(row: dict[str, Any], path: str | None, form: str) -> str:
        value: Any = None if path is None else reduce(lambda group, key: (group or {}).get(key), path.split("/"), row)
        return "-" if value is None else format(value, form)

    first = report["methods"][0]
    rows = [[heading for heading, *_ in COLUMNS], ["---"] * len(COLUMNS)]
    rows += [[cell(row, path, form) for _, path, _, form in COLUMNS] for row in report["methods"]]
    rows.append(["", "chance", *(cell(first, path, form) for _, _, path, form in COLUMNS[2:])])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def options_of_comparison(description: str | None) -> argparse.ArgumentParser:
    """The options that `open_comparison` takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint of a trained Prompt-CAM")
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and test/")
    parser.add_argument("--views", type=int, default=4, help="augmented views per photograph for training the probe")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def open_comparison(args: argparse.Namespace, output_dir: Path | None = None, **settings: Any) -> Comparison:
    """
    Open both classifiers.

    Args:
        args: Values of the options.
        output_dir: Folder that keeps the probe, and the results of an interrupted run. It is created if needed.
        settings: What else the results in this folder depend on.

    Raises:
        ValueError: If the folder has results of another model, other data or other settings.
    """
    torch.manual_seed(0)  # for the augmented views
    pipe = open_pipeline(args.model, device=args.device)
    model = pipe.model.float()
    probe = None
    if output_dir is not None:
        output_dir.mkdir(parents=True, exist_ok=True)
        settings |= {"model": model_state(pipe, args.model), "data": str(args.data.resolve()), "views": args.views}
        file, probe = output_dir / SETTINGS, output_dir / "probe.pt"
        if file.is_file() and json.loads(file.read_text(encoding="utf-8")) != settings:
            raise ValueError(f"{output_dir} has results of another model, data or options; choose another folder.")
        write_atomically(file, as_json(settings))
    return Comparison(model, pipe.image_processor, args.data, args.views, args.batch_size, probe_file=probe)


def main() -> None:
    parser = options_of_comparison(__doc__)
    parser.add_argument("--output", type=Path, help="JSON file for all the metrics")
    parser.add_argument(
        "--faithfulness-images", type=int, default=FAITHFULNESS_IMAGES, help="photographs for insertion and deletion"
    )
    args = parser.parse_args()
    try:
        report = open_comparison(args).measure(args.faithfulness_images)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"Both classifiers are right on {report['num_both_right']} of {report['num_images']} test photographs.\n")
    print(table(report))
    if args.output:
        content = {"model": args.model.name, "data": args.data.name, **report}
        write_atomically(args.output, json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
