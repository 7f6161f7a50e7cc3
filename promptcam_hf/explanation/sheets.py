"""Draw contact sheets of photographs that were explained into shards: `promptcam sheets`, as a Python function."""

import ast
import operator
import os
from collections.abc import Callable
from functools import reduce
from io import BytesIO
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..files import write_atomically, writing_to
from ..messages import check_counts, listed
from ..modeling.images_promptcam import load_photograph
from .drawing import contact_sheet, shrunk, titled, write_sheet
from .inputs import sheet_names
from .predictor import explanations_of
from .shards import open_shards
from .sources import reopen

COMPARE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda column, values: column.isin(values),
    ast.NotIn: lambda column, values: ~column.isin(values),
}
EXPECTED = "expected comparisons of columns, such as \"label == 'Scott_Oriole' and score < 0.6\""


def draw_sheets(
    folder: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    where: str | None = None,
    limit: int = 100,
    progress: bool = True,
) -> tuple[int, dict[str, str]]:
    """
    Draw a contact sheet for each photograph of some rows. The photographs must be where they were.

    Args:
        folder: The folder of the shards.
        output_dir: Folder for the sheets. It is created if needed.
        where: Which rows, as for `parse_where`. Default: all that could be read.
        limit: How many sheets to draw, at most: of the first rows.
        progress: Whether to show a progress bar.

    Returns:
        The number of sheets, and photograph -> why it could not be drawn.

    Raises:
        ValueError: If the folder holds no shards, `where` cannot be understood or fits no row, or a file would be
            replaced.
        OSError: If a sheet cannot be written.
    """
    import pyarrow.dataset as ds

    check_counts(limit=limit)
    data = open_shards(folder)
    readable = ds.field("error").is_null()
    chosen = readable if where is None else readable & parse_where(where, data.schema.names)
    try:
        columns = data.head(limit, filter=chosen).to_pydict()
    except (TypeError, ValueError, NotImplementedError) as error:  # pyarrow's, such as of text and numbers compared
        raise ValueError(f"where={where!r}: {' '.join(str(error).split())}") from None
    if not columns["photograph"]:
        raise ValueError(f"{folder}: no rows that could be read" + (f" fit {where!r}." if where else "."))
    output_dir = Path(output_dir)
    sheets = [output_dir / f"{name}.png" for name in sheet_names(columns["photograph"])]
    for sheet in sheets:
        if os.path.lexists(sheet):
            raise ValueError(f"{sheet} exists; choose another folder.")
    errors: dict[str, str] = {}
    with writing_to(output_dir):
        output_dir.mkdir(parents=True, exist_ok=True)
    for row, name in enumerate(tqdm(columns["photograph"], desc="drawing", unit="photo", disable=not progress)):
        try:
            source = reopen(name)
            photograph = load_photograph(BytesIO(source) if isinstance(source, bytes) else source)
        except ValueError as error:
            errors[name] = str(error)
            continue
        title = titled(name, columns["truth"][row], columns["label"][row])
        picture = contact_sheet(shrunk(photograph), explanations_of(columns, row), title=title)
        write_atomically(sheets[row], write_sheet(picture))
    return len(sheets) - len(errors), errors


def parse_where(text: str, columns: list[str]) -> Any:
    """
    Turn a condition into a `pyarrow` expression. Nothing in it is run as code.

    Args:
        text: Comparisons of columns with each other or with texts and numbers (`==`, `!=`, `<`, `<=`, `>`, `>=`, `in`,
            `not in`, `is None`, `is not None`), and `and`, `or`, `not` and brackets between them, as in Python.
        columns: The names of the columns.

    Returns:
        A `pyarrow.compute.Expression`.

    Raises:
        ValueError: If it is anything else, or names another column.
    """
    try:
        return _condition(ast.parse(text.strip(), mode="eval").body, columns)
    except (SyntaxError, RecursionError, MemoryError, _NotUnderstoodError) as error:
        reason = f"{error}; " if isinstance(error, _NotUnderstoodError) else ""
        raise ValueError(f"where={text!r}: {reason}{EXPECTED}.") from None


class _NotUnderstoodError(Exception):
    pass


def _condition(node: ast.expr, columns: list[str]) -> Any:
    if isinstance(node, ast.BoolOp):
        both = operator.and_ if isinstance(node.op, ast.And) else operator.or_
        return reduce(both, (_condition(value, columns) for value in node.values))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return ~_condition(node.operand, columns)
    if not isinstance(node, ast.Compare):
        raise _NotUnderstoodError(f"{ast.unparse(node)} is no comparison")
    sides = zip([node.left, *node.comparators], node.ops, node.comparators, strict=False)
    return reduce(operator.and_, (_comparison(left, compare, right, columns) for left, compare, right in sides))


def _comparison(left: ast.expr, compare: ast.cmpop, right: ast.expr, columns: list[str]) -> Any:
    value = _value(left, columns)
    if isinstance(compare, (ast.Is, ast.IsNot)) and isinstance(right, ast.Constant) and right.value is None:
        return value.is_null() if isinstance(compare, ast.Is) else value.is_valid()
    if isinstance(compare, (ast.In, ast.NotIn)):
        if not isinstance(right, (ast.List, ast.Tuple)):
            raise _NotUnderstoodError(f"{ast.unparse(right)} is no list")
        return COMPARE[type(compare)](value, [_constant(item) for item in right.elts])
    if type(compare) not in COMPARE:
        raise _NotUnderstoodError("'is' is for None only")
    return COMPARE[type(compare)](value, _value(right, columns))


def _value(node: ast.expr, columns: list[str]) -> Any:
    import pyarrow.compute as pc

    if isinstance(node, ast.Name):
        if node.id not in columns:
            raise _NotUnderstoodError(f"there is no column {node.id}, but {listed(columns, 20)}")
        return pc.field(node.id)
    return pc.scalar(_constant(node))


def _constant(node: ast.expr) -> Any:
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError):
        raise _NotUnderstoodError(f"{ast.unparse(node)} is no column, text or number") from None
    if not isinstance(value, (str, int, float)):
        raise _NotUnderstoodError(f"{ast.unparse(node)} is no text or number")
    return value
