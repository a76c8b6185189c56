"""The API page: plain HTML rendered from the OpenAPI document. No script, nothing from elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html import escape
from typing import Any, Final

from streams.gateway.openapi import curl
from streams.gateway.problems import KINDS

__all__ = ["render"]

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --mark: #06c; }
@media (prefers-color-scheme: dark) { :root { --mark: #6bf; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
h3 { margin: 2rem 0 .25rem; } h3 code { font-size: 1.05rem; }
a { color: var(--mark); } code, pre { font-family: ui-monospace, monospace; font-size: .9rem; }
pre { background: var(--soft); padding: .75rem; overflow-x: auto; border-radius: .3rem; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: .3rem .6rem .3rem 0;
 border-bottom: 1px solid var(--line); vertical-align: top; } .method { color: var(--mark); font-weight: 600; }
nav ul { columns: 2; padding-left: 1.2rem; } @media (max-width: 40rem) { nav ul { columns: 1; } }
"""


def render(document: Mapping[str, Any], *, address: str, nonce: str) -> str:
    """The page for an OpenAPI document. ``nonce`` allows the one style element under the page's CSP."""
    operations = [
        (method.upper(), path, op) for path, methods in document["paths"].items() for method, op in methods.items()
    ]
    info = document["info"]
    toc = "".join(
        f'<li><a href="#{escape(op["operationId"])}"><code>{method} {escape(path)}</code></a> '
        f"{escape(op['summary'])}</li>"
        for method, path, op in operations
    )
    body = "".join(_operation(method, path, op, address) for method, path, op in operations)
    schemas = "".join(
        f'<details id="schema-{escape(name)}"><summary><code>{escape(name)}</code> '
        f"{escape(schema.get('description', '').split(chr(10))[0])}</summary>{_json(schema)}</details>"
        for name, schema in document["components"]["schemas"].items()
    )
    problems = "".join(
        f'<tr id="problem-{code}"><td><code>{code}</code></td><td>{kind.status}</td><td>{escape(kind.title)}</td>'
        f"<td>{escape(kind.advice)}</td></tr>"
        for code, kind in KINDS.items()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(info["title"])}</title><link rel="icon" href="data:,">'
        f'<style nonce="{escape(nonce)}">{_STYLE}</style></head><body>'
        f"<header><h1>{escape(info['title'])}</h1><p>{escape(info['description'])} Version {escape(info['version'])}; "
        'the document behind this page is <a href="/openapi.json">/openapi.json</a>.</p></header>'
        f'<nav aria-label="Operations"><ul>{toc}</ul></nav><main><h2>Operations</h2>{body}'
        "<h2>Problems</h2><p>Errors are problem documents (RFC 9457), <code>application/problem+json</code>.</p>"
        '<table><thead><tr><th scope="col">code</th><th scope="col">status</th><th scope="col">what</th>'
        f'<th scope="col">what to do</th></tr></thead><tbody>{problems}</tbody></table>'
        f"<h2>Schemas</h2>{schemas}</main></body></html>"
    )


def _operation(method: str, path: str, op: Mapping[str, Any], address: str) -> str:
    example = op.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
    parts = [
        f'<section id="{escape(op["operationId"])}"><h3><code><span class="method">{method}</span> '
        f"{escape(path)}</code></h3><p>{_prose(op['summary'])} {_prose(op.get('description', ''))}</p>",
        f"<pre>{escape(curl(method, path, example, address))}</pre>",
    ]
    if op.get("parameters"):
        rows = "".join(
            f"<tr><td><code>{escape(p['name'])}</code></td><td>{p['in']}</td><td>{_prose(p['description'])}</td></tr>"
            for p in op["parameters"]
        )
        parts.append(f"<table><tbody>{rows}</tbody></table>")
    rows = "".join(_response(status, reply) for status, reply in op["responses"].items())
    parts.append(f"<table><tbody>{rows}</tbody></table></section>")
    return "".join(parts)


def _response(status: str, reply: Mapping[str, Any]) -> str:
    shown = ""
    for media_type, content in reply["content"].items():
        if "example" in content:
            shown += _json(content["example"])
        reference = content.get("schema", {}).get("$ref", "")
        if reference:
            name = reference.rsplit("/", 1)[-1]
            shown += f' <a href="#schema-{escape(name)}">{escape(name)}</a>'
        else:
            shown += f" <code>{escape(media_type)}</code>"
    return f"<tr><td>{status}</td><td>{_prose(reply['description'])}{shown}</td></tr>"


def _prose(text: str) -> str:
    """Escaped, with `code` between backticks."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _json(value: Any) -> str:
    return f"<pre>{escape(json.dumps(value, indent=2, ensure_ascii=False))}</pre>"
