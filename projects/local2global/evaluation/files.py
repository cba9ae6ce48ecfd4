"""JSON files of truth and predictions."""

from __future__ import annotations

import json
import zlib
from lzma import LZMAError
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

from ..errors import UserError
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
                text = bundle.read("results.json").decode("utf-8-sig")
        else:
            text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: a folder; name the JSON file in it") from error
    except (KeyError, BadZipFile, zlib.error, LZMAError, EOFError, RuntimeError) as error:
        # RuntimeError: the entry is encrypted
        raise UserError(f"{path}: a zip without a sound results.json at its top") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not JSON: byte {error.start} is not UTF-8 text") from error
    return _parsed(text, path)


def _parsed(text: str, path: Path) -> Any:
    if not text:
        raise UserError(f"{path}: the file is empty")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise UserError(f"{path}: its lists are nested too deeply") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {str(error).split(';')[0]}") from error
