"""The texts that users read on nodes, in English and in the languages of the pack.

    python locales/texts.py english --comfyui DIR      writes locales/en from the nodes' schemas
    python locales/texts.py missing LANGUAGE           prints as JSON what is not translated, or is of another English
    python locales/texts.py add LANGUAGE FILE          takes translations: a JSON object in the shape of ``missing``

ComfyUI reads ``<language>/nodeDefs.json`` and ``main.json``. ``<language>/sources.json`` beside them keeps a digest of
the English that each text translates, so that a changed tooltip is known to be stale in seven languages.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
LANGUAGES = ("zh", "ja", "ko", "fr", "es", "de", "ru")
"""Beside English, by the codes of ComfyUI's page. That of ComfyUI 0.30 cannot be set to German yet."""
FILES = ("nodeDefs", "main")
Tree = dict[str, Any]


def english(schemas: Iterable[Any]) -> Tree:
    """File → the texts in it, as ComfyUI's page looks them up, of V3 schemas."""
    schemas = list(schemas)
    parts = {part for schema in schemas for part in schema.category.split("/")}
    return {
        "nodeDefs": {schema.node_id: _of_node(schema) for schema in sorted(schemas, key=lambda each: each.node_id)},
        "main": {"nodeCategories": {part: part for part in sorted(parts)}},
    }


def _of_node(schema: Any) -> Tree:
    outputs = {
        # ComfyUI makes up ids such as "_0_MODEL_" for outputs that have none, and shows their type
        str(place): ({} if output.id.startswith("_") else {"name": output.id}) | {"tooltip": output.tooltip}
        for place, output in enumerate(schema.outputs)
    }
    inputs = {name: {"name": name, "tooltip": item.tooltip} for name, item in _inputs(schema.inputs)}
    texts: Tree = {"display_name": schema.display_name, "description": schema.description, "inputs": inputs}
    return texts | ({"outputs": outputs} if outputs else {})


def _inputs(items: Iterable[Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Those that a choice brings along are under its name; the page writes "_" for "."."""
    for item in items:
        yield prefix + item.id, item
        for option in getattr(item, "options", None) or ():
            yield from _inputs(getattr(option, "inputs", ()), f"{prefix}{item.id}_")


def flat(tree: Tree, prefix: str = "") -> dict[str, str]:
    """``nodeDefs/DependencyNoise/inputs/kl/tooltip`` → its text."""
    texts = {}
    for name, value in tree.items():
        texts |= flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {prefix + name: value}
    return texts


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def read(language: str) -> dict[str, str]:
    """All texts of a language, flat; {} for one that is not begun."""
    paths = {name: FOLDER / language / f"{name}.json" for name in FILES}
    return flat({name: json.loads(path.read_text("utf-8")) for name, path in paths.items() if path.is_file()})


def sources(language: str) -> dict[str, str]:
    """Of every translated text, the digest of the English it translates."""
    path = FOLDER / language / "sources.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def missing(language: str) -> dict[str, str]:
    """English texts that have no translation, or one of another English."""
    translated, of = read(language), sources(language)
    return {key: text for key, text in read("en").items() if not translated.get(key) or of.get(key) != digest(text)}


def add(language: str, translations: dict[str, str]) -> None:
    """Write ``translations`` into the language's files; what English no longer has goes.

    Raises:
        ValueError: a key is not English's, or a text has what the page would take for a placeholder.
    """
    texts = read("en")
    if unknown := sorted(translations.keys() - texts.keys()):
        raise ValueError(f"expected keys as `missing` prints them, got {', '.join(unknown[:5])}")
    for key, text in translations.items():
        if not isinstance(text, str) or not text.strip() or set(text) & set("{}|@"):
            raise ValueError(f"{key}: expected a text without any of {{ }} | @, got {text!r}")
    both = read(language) | translations
    of = sources(language) | {key: digest(texts[key]) for key in translations}
    write(language, {key: both[key] for key in texts if key in both}, {key: of[key] for key in texts if key in of})


def write(language: str, texts: dict[str, str], of: dict[str, str] | None = None) -> None:
    folder = FOLDER / language
    folder.mkdir(exist_ok=True)
    tree: Tree = {}
    for key, text in texts.items():
        *path, name = key.split("/")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[name] = text
    for name, content in {**tree, **({"sources": of} if of is not None else {})}.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _schemas(comfyui: Path) -> list[Any]:
    sys.path.insert(0, str(comfyui))
    import comfy.options  # noqa: F401  (this script owns the command line)
    from comfy.cli_args import args

    args.cpu = True
    path = FOLDER.parent / "__init__.py"
    spec = importlib.util.spec_from_file_location("coherence", path, submodule_search_locations=[str(path.parent)])
    assert spec is not None
    assert spec.loader is not None
    sys.modules["coherence"] = pack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)

    async def nodes() -> list[Any]:
        return await (await pack.comfy_entrypoint()).get_node_list()

    return [node.GET_SCHEMA() for node in asyncio.run(nodes())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("english").add_argument("--comfyui", type=Path, required=True, help="folder of a ComfyUI")
    for name in ("missing", "add"):
        commands.add_parser(name).add_argument("language", choices=LANGUAGES)
    commands.choices["add"].add_argument("file", type=Path)
    options = parser.parse_args()
    if options.command == "english":
        write("en", flat(english(_schemas(options.comfyui.resolve()))))
    elif options.command == "missing":
        texts = json.dumps(missing(options.language), indent=1, ensure_ascii=False)
        sys.stdout.buffer.write(f"{texts}\n".encode())  # as `add` reads it, whatever the terminal's encoding is
    else:
        add(options.language, json.loads(options.file.read_text("utf-8")))


if __name__ == "__main__":
    main()
