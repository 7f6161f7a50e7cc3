"""Reading data: photographs and labels in any of the supported layouts, and masks of body parts.

Public: `read_splits` (layouts), `load_splits`, `Splits`, `Photographs`, `find_unreadable`, `TrainTransform`,
`EvaluationTransform` (photographs), `find_photographs`, `is_photograph`, `left_out`, `IMAGE_SUFFIXES` (image_files),
`plain_name`, `plain_names`, `read_text` (class_names), `PartTable`, `PartFolder`, `has_parts`, `read_mask` (parts).
"""
