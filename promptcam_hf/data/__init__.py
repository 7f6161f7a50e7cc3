"""Photographs in: folders and data sets of every layout, labels, masks of body parts.

`layouts` finds the photographs, `photographs` prepares them for a model, `parts` knows the masks of body parts.
"""
