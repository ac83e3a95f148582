"""`python -m workers.adapter_cli`: compress an adapter, look into an archive, expand it, merge.

A folder is what peft saves, or what a job leaves. The base model is needed for its shapes only.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from pydantic import ValidationError

from scheduler.domain.adapter import AdapterManifest
from scheduler.domain.errors import DomainError, InvalidInput
from scheduler.durable import write_durably
from workers.adapter_archive import pack_archive, read_archive, read_header
from workers.adapter_file import (
    CONFIG,
    MANIFEST,
    BaseIdentity,
    LoadedAdapter,
    read_adapter,
    write_adapter,
)
from workers.architecture import decoder_config
from workers.codecs import CODECS
from workers.hf_config import read_hf_config
from workers.merges import MERGES
from workers.model import DecoderConfig
from workers.plugin_options import plugin_options


def compress(options: argparse.Namespace) -> None:
    """Folder -> archive, and its size."""
    codec_type = CODECS[options.codec]
    given = {"density": options.density, "alpha": options.alpha}
    config = plugin_options(codec_type.Config, {k: v for k, v in given.items() if v is not None})
    adapter, base, seed = _read_folder(options.path, _model(options))
    write_durably(options.out, pack_archive(adapter, codec_type(config), base, seed))
    inspect(argparse.Namespace(path=options.out))


def inspect(options: argparse.Namespace) -> None:
    """Print an archive's header and sizes as JSON."""
    header, size = read_header(options.path)
    sizes = {
        "total_bytes": size.total,
        "header_bytes": size.header,
        "payload_bytes": size.payload,
        "bits_per_parameter": round(8 * size.total / max(size.num_parameters, 1), 4),
        "ratio_to_16_bit": round(size.ratio_to_16_bit, 2),
    }
    _print(header.model_dump(mode="json", exclude_none=True) | sizes)


def expand(options: argparse.Namespace) -> None:
    """Archive -> peft folder."""
    archive = read_archive(options.path, _model(options))
    adapter, header = archive.adapter(), archive.header
    base = BaseIdentity(header.base_model, header.base_digest)
    write_adapter(options.out, adapter.method, adapter.params, base, 0, header.metrics)


def merge(options: argparse.Namespace) -> None:
    """Folders -> one folder."""
    merge_type = MERGES[options.method]
    config = plugin_options(merge_type.Config, json.loads(options.config))
    model = _model(options)
    read = [_read_folder(path, model) for path in options.paths]
    weights = options.weights or [1 / len(read)] * len(read)
    merged = merge_type(config).merge([adapter for adapter, _, _ in read], weights)
    write_adapter(options.out, merged.method, merged.params, read[0][1], 0, {})


def _read_folder(
    folder: Path, model: DecoderConfig
) -> tuple[LoadedAdapter, BaseIdentity, int | None]:
    """(adapter, its base, the seed of its initial value if our manifest tells it)."""
    adapter = read_adapter(folder, model)
    try:
        manifest = AdapterManifest.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        config = json.loads((folder / CONFIG).read_bytes())
        return adapter, BaseIdentity(str(config.get("base_model_name_or_path", "")), ""), None
    except ValidationError as error:
        raise InvalidInput(f"{MANIFEST} is wrong: {error.errors()[0]['msg']}.") from None
    base = BaseIdentity(manifest.base_model, manifest.base_digest)
    return adapter, base, manifest.init_seed


def _model(options: argparse.Namespace) -> DecoderConfig:
    return decoder_config(read_hf_config(options.base_model))


def _print(facts: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(facts, indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tandem adapters local", description=__doc__)
    commands = parser.add_subparsers(required=True)

    def command(run: object, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(getattr(run, "__name__", ""), help=text)
        added.set_defaults(run=run)
        return added

    added = command(compress, "peft folder -> archive")
    added.add_argument("path", type=Path)
    added.add_argument("--codec", default="compeft", choices=CODECS.names())
    added.add_argument("--density", type=float, help="compeft: share of the entries kept")
    added.add_argument("--alpha", type=float, help="compeft: scale in standard deviations")
    _add_out_and_base(added)
    command(inspect, "what an archive holds").add_argument("path", type=Path)
    added = command(expand, "archive -> peft folder")
    added.add_argument("path", type=Path)
    _add_out_and_base(added)
    added = command(merge, "peft folders -> one peft folder")
    added.add_argument("paths", type=Path, nargs="+")
    added.add_argument("--method", default="linear", choices=MERGES.names())
    added.add_argument("--weights", type=float, nargs="+", help="one for each; default equal")
    added.add_argument("--config", default="{}", help="the method's options, as JSON")
    _add_out_and_base(added)
    return parser


def _add_out_and_base(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base-model", type=Path, required=True, help="its Hugging Face folder")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; what is wrong becomes one sentence and exit status 1."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except DomainError as error:
        reason = error.message
    except json.JSONDecodeError as error:
        reason = f"--config is not JSON: {error}."
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}."
    else:
        return 0
    sys.stderr.write(f"tandem adapters local: {reason}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
