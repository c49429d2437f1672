"""Named arrays of a model as one run of bytes: the layout, whether two of them fit, whether all is finite.

The layout is that of safetensors: 8 bytes of length (little-endian), a JSON header padded with spaces, the
data. Konsil's header is canonical (one schema, one header, one digest): tensors by dtype (F64, F32, BF16,
F16), then by name; offsets without holes; no metadata. So every chunk is element-aligned, and files that the
safetensors library writes for floating-point arrays are in this order already.
"""

from konsil.core.parameters.files import annotated_header, file_pieces, header_of_file
from konsil.core.parameters.marks import CLASSES, COLUMNS, FROZEN, is_mark, mark
from konsil.core.parameters.schema import (
    ARRAY_DTYPES,
    MAX_DATA_BYTES,
    MAX_HEADER_BYTES,
    PREFIX_BYTES,
    Run,
    Schema,
    Tensor,
)
from konsil.core.parameters.values import (
    LARGEST_F64,
    MAX_FILE_HEADER_BYTES,
    check_finite,
    pack,
    read_safetensors,
    views,
)

__all__ = [
    "ARRAY_DTYPES",
    "CLASSES",
    "COLUMNS",
    "FROZEN",
    "LARGEST_F64",
    "MAX_DATA_BYTES",
    "MAX_FILE_HEADER_BYTES",
    "MAX_HEADER_BYTES",
    "PREFIX_BYTES",
    "Run",
    "Schema",
    "Tensor",
    "annotated_header",
    "check_finite",
    "file_pieces",
    "header_of_file",
    "is_mark",
    "mark",
    "pack",
    "read_safetensors",
    "views",
]
