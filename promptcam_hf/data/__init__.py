"""Reading data: photographs and labels in any of the supported layouts, and masks of body parts.

    layouts.py -> Source -> splits.py (perhaps division.py) -> Splits -> photographs.py -> pixels
                                                                     `-> overview.py, the table before training

Public: `load_splits`, `Splits` (splits), `Layout` (source), `overview` (overview), `Photographs`, `find_unreadable`,
`TrainTransform`, `EvaluationTransform` (photographs), `find_photographs`, `is_photograph`, `left_out`, `IMAGE_SUFFIXES`
(image_files), `plain_name`, `plain_names`, `read_text` (class_names), `PartTable`, `PartFolder`, `has_parts`,
`read_mask` (parts).
"""
