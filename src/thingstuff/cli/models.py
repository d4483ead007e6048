"""`thingstuff models`: what comes with the package."""

import argparse
import json
import math
from pathlib import Path
from typing import Any


def add_models_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object with the whole model cards instead")


def run_models(arguments: argparse.Namespace) -> int:
    from thingstuff.bundled import bundled_models

    facts = {name: model_facts(path) for name, path in bundled_models().items()}
    if arguments.json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return 0
    if not facts:
        print("no model comes with this installation; give --model the path of a checkpoint file")
    for name, fact in facts.items():
        print(f"{name}: {fact['summary']}" if fact["summary"] else name)
        print(f"    {fact['architecture']} on {fact['backbone']}, {fact['parameters'] / 1e6:.1f} million parameters")
        print(f"    finds {', '.join(fact['categories'])}")
        print(f"    {fact['bytes'] / 1e6:.1f} MB, {fact['file']}")
    return 0


def model_facts(path: Path) -> dict[str, Any]:
    """What a bundled model's file and the card beside it say; neither the weights are read, nor torch imported."""
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        header = file.metadata()  # as checkpoints.files.save writes it
        parameters = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 (not a dict)
    card_path = path.with_suffix(".md")
    card = card_path.read_text(encoding="utf-8") if card_path.exists() else ""
    return {
        "summary": _first_paragraph(card),
        "architecture": header["architecture"],
        "backbone": json.loads(header["config"])["backbone"]["name"],
        "categories": [category["name"] for category in json.loads(header["categories"])["items"]],
        "parameters": parameters,
        "bytes": path.stat().st_size,
        "file": str(path),
        "notes": json.loads(header["notes"]),
        "card": card,
    }


def _first_paragraph(card: str) -> str:
    """The first lines of a Markdown text that are no heading, as one line."""
    paragraphs = (" ".join(part.split()) for part in card.split("\n\n"))
    return next((text for text in paragraphs if text and not text.startswith(("#", "---", "|"))), "")
