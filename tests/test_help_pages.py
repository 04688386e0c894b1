"""Every node has a help page that the frontend finds, and it speaks of every widget."""

from __future__ import annotations

from pathlib import Path

from loops import complete

DOCS = Path(__file__).resolve().parents[1] / "web" / "docs"


def test_every_node_has_a_page_that_explains_its_widgets(host):
    from comfy_api.latest import io
    from mip_adapter.nodes import extension

    schemas = [node.define_schema() for node in complete(extension().get_node_list())]
    assert {page.stem for page in DOCS.glob("*.md")} == {schema.node_id for schema in schemas}
    for schema in schemas:
        page = (DOCS / f"{schema.node_id}.md").read_text("utf-8")
        missing = [each.id for each in schema.inputs if isinstance(each, io.WidgetInput) and each.id not in page]
        assert not missing, f"{schema.node_id}.md does not mention {missing}"
