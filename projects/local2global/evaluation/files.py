"""JSON files of truth and predictions."""

from __future__ import annotations

import zlib
from lzma import LZMAError
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

from ..errors import UserError
from ..files import parse_json
from ..limits import MAX_RESULTS


def read_json(path: str | Path) -> Any:
    """Parses a JSON file, or `results.json` in a zip file for a challenge.

    Raises:
        UserError: the file is missing, empty, a folder, a damaged zip, or not JSON.
    """
    path = Path(path)
    try:
        if is_zipfile(path):
            with ZipFile(path) as bundle:
                size = bundle.getinfo("results.json").file_size
                if size > MAX_RESULTS:
                    raise UserError(f"{path}: its results.json has {size} bytes, the limit is {MAX_RESULTS}")
                data = bundle.read("results.json")
        else:
            data = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: a folder; name the JSON file in it") from error
    except (KeyError, BadZipFile, zlib.error, LZMAError, EOFError, RuntimeError, UnicodeDecodeError) as error:
        # RuntimeError: the entry is encrypted; UnicodeDecodeError: a name in the zip is no text
        raise UserError(f"{path}: a zip without a sound results.json at its top") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    return parse_json(data, path)
