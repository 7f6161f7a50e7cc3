"""Reading data: photographs and labels in any of the supported layouts, and masks of body parts.

Public: `read_splits` (layouts), `load_splits`, `Splits`, `Photographs`, `find_unreadable`, `TrainTransform`,
`EvaluationTransform` (photographs), `PartTable`, `PartFolder`, `has_parts`, `read_mask` (parts).
"""
