"""Archives of given members, as uploads have them."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from typing import Any

Members = list[tuple[str, bytes]]


def make_zip(content: Members, **options: Any) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, data in content:
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return target.getvalue()


def make_tar(content: Members, **changes: Any) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, data in content:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for key, value in changes.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(data))
    return target.getvalue()


def make_tar_gz(content: Members) -> bytes:
    return gzip.compress(make_tar(content))
