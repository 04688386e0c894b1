"""locales/: what the frontend says of our nodes, in every language complete. English is what the schemas say.

After a change of a schema:  MIP_ADAPTER_UPDATE=1 python mip.py test tests/house/test_locales.py
Then translate by hand.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..support.loops import complete
from ..support.newer import absent
from ..support.paths import ROOT

LOCALES = ROOT / "locales"
ENGLISH = LOCALES / "en" / "nodeDefs.json"
CHINESE = re.compile("[\u4e00-\u9fff]")
# What the frontend's translator (vue-i18n) would take as a placeholder, a linked message or a plural.
SPECIAL = re.compile(r"[{}@|]")
LITERAL = re.compile(r"\{'[{}@|]'\}")
# Names that Chinese users know untranslated.
UNTRANSLATED = {"MIP-Adapter", "CLIP", "VAE", "Latent", "EMA", "Min-SNR", "ε"}
# The host's nodes, as its own Chinese calls them.
OF_THE_HOST = {"VAE解码", "VAE编码", "加载CLIP视觉", "加载图像", "从批次获取Latent", "预览任意", "预览图像"}


def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def escaped(text: str) -> str:
    return SPECIAL.sub(lambda found: f"{{'{found[0]}'}}", text)


def said(schema) -> dict:
    """One node's entry of nodeDefs.json, from its schema."""
    inputs = {
        each.id: {"name": escaped(each.display_name or each.id), "tooltip": escaped(each.tooltip)}
        for each in schema.inputs
    }
    outputs = {}
    for i, each in enumerate(schema.outputs):
        outputs[str(i)] = {"name": escaped(each.display_name or each.get_io_type())}
        if each.tooltip:
            outputs[str(i)]["tooltip"] = escaped(each.tooltip)
    return {
        "display_name": escaped(schema.display_name),
        "description": escaped(schema.description),
        "inputs": inputs,
        "outputs": outputs,
    }


@pytest.fixture(scope="module")
def schemas(host) -> list:
    from mip_adapter.nodes import extension

    return [node.define_schema() for node in complete(extension().get_node_list())]


def test_english_is_what_the_schemas_say(schemas) -> None:
    now = {schema.node_id: said(schema) for schema in schemas} | {each: load(ENGLISH)[each] for each in absent()}
    if os.environ.get("MIP_ADAPTER_UPDATE"):
        ENGLISH.write_text(json.dumps(now, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    assert load(ENGLISH) == now, "locales/en is out of date (see this file's top)"


@pytest.mark.parametrize("language", sorted(path.name for path in LOCALES.iterdir() if path.name != "en"))
@pytest.mark.parametrize("file", ["nodeDefs.json", "main.json", "settings.json"])
def test_other_languages_say_all_of_it(language, file) -> None:
    english = ENGLISH.with_name(file)
    if not english.exists():
        return
    meant, told = (dict(texts(load(path))) for path in (english, LOCALES / language / file))
    assert not set(meant) - set(told), f"to be translated into {language}: {sorted(set(meant) - set(told))}"
    assert not set(told) - set(meant), f"gone from English, still in {language}: {sorted(set(told) - set(meant))}"


def test_chinese_is_chinese() -> None:
    for path in (LOCALES / "zh").glob("*.json"):
        english = [key for key, text in texts(load(path)) if not CHINESE.search(text) and text not in UNTRANSLATED]
        assert not english, f"{path.name}: {english}"


def test_one_input_has_one_chinese_name() -> None:
    """On every node; but for two, whose English names mean different things."""
    names: dict[str, set[str]] = {}
    for node in load(LOCALES / "zh" / "nodeDefs.json").values():
        for key, said in node.get("inputs", {}).items():
            names.setdefault(key, set()).add(said["name"])
    assert {key for key, several in names.items() if len(several) > 1} == {"pictures", "steps"}, names


def test_chinese_texts_call_nodes_and_inputs_by_their_names() -> None:
    """In tooltips what stands in Chinese quotes, in help pages the word behind the name of an input or an output."""
    nodes, english = load(LOCALES / "zh" / "nodeDefs.json"), load(ENGLISH)
    pairs = {
        (english[kind][side][key]["name"], said["name"])
        for kind, node in nodes.items()
        for side in ("inputs", "outputs")
        for key, said in node.get(side, {}).items()
    }
    known = OF_THE_HOST | {node["display_name"] for node in nodes.values()} | {word for _, word in pairs}
    for path, text in texts(nodes):
        quoted = {each for each in re.findall("“([^”]+)”", text) if CHINESE.search(each)}
        assert not quoted - known, f"{path}: {quoted - known}"
    for kind in nodes:
        page = (ROOT / "web" / "docs" / kind / "zh.md").read_text("utf-8")
        told = {(name, word) for name, word in re.findall(r"\*\*(\w+)（([^，）]+)", page) if word != "可选"}
        assert not told - pairs, f"{kind}: {told - pairs}"


def test_the_frontend_can_read_every_text() -> None:
    for path in LOCALES.rglob("*.json"):
        broken = [key for key, text in texts(load(path)) if SPECIAL.search(LITERAL.sub("", text))]
        assert not broken, f"{path}: write {{'@'}} for @ in {broken}"


def test_every_category_and_text_of_the_scripts_has_a_name(schemas) -> None:
    """Menu entries under MIP-Adapter, and what web/js says with say("…")."""
    main = load(LOCALES / "zh" / "main.json")
    parts = {part for schema in schemas for part in schema.category.split("/")[1:]}
    assert parts <= set(main["nodeCategories"])
    scripts = "\n".join(path.read_text("utf-8") for path in (ROOT / "web" / "js").glob("*.js"))
    assert set(re.findall(r'\bsay\("([^"]+)"\)', scripts)) == set(main["mipAdapter"])
    settings = {each.replace(".", "_") for each in re.findall(r'\bid: "(MIP-Adapter\.[^"]+)"', scripts)}
    assert settings == set(load(LOCALES / "zh" / "settings.json"))


@pytest.mark.parametrize("file", sorted((ROOT / "web" / "templates").iterdir()), ids=lambda file: file.stem)
def test_templates_speak_other_languages(file) -> None:
    """Every note, title and label, by the English words; the Chinese ones are Chinese, but for names."""
    said = set()
    for path in (ROOT / "workflows").glob("*.json"):
        workflow = load(path)
        said |= {each["title"] for each in (*workflow["nodes"], *workflow["groups"]) if "title" in each}
        said |= {node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "MarkdownNote"}
        said |= {entry["label"] for node in workflow["nodes"] for entry in node.get("inputs", []) if "label" in entry}
        said |= {about["description"] for *_, about in workflow["extra"].get("linearData", {}).get("inputs", [])}
    told = load(file)
    assert said == set(told), sorted(said ^ set(told))
    assert not [text for text in told.values() if not CHINESE.search(text)]
    for english, text in told.items():
        assert re.findall(r"\(http\S+\)", english) == re.findall(r"\(http\S+\)", text)


def texts(tree: dict, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text of nested dicts under its path."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from texts(value, f"{path}{key}/")
        else:
            yield f"{path}{key}", value
