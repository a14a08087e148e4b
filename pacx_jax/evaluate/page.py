"""The report's page: its style sheet, and small pieces of accessible HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence

CSS = """
:root{color-scheme:light dark;--paper:#fff;--panel:#f5f7fa;--ink:#18212c;
--muted:#536071;--line:#d3dbe4;--pacx:#0b5cad;--mae:#b3480b;--s1:#5f6b7a;
--s2:#7a5aa6;--s3:#2f7d6b;--s4:#8a6d1d;--s5:#a03a6b;--good:#0d6138;--good-bg:#e2f4e9;
--bad:#9c1d1d;--bad-bg:#fce8e8;--none:#434e5b;--none-bg:#e9edf2;--note:#6a4a00;
--note-bg:#fff5db;--note-line:#e3c26a}
@media screen and (prefers-color-scheme:dark){:root{--paper:#11161d;--panel:#1a212b;
--ink:#e8edf3;--muted:#a5b1bf;--line:#344050;--pacx:#74b4ff;--mae:#ffa063;--s1:#9aa7b6;
--s2:#bda1e6;--s3:#6cc9b2;--s4:#d6b75a;--s5:#ee8fbd;--good:#8be0b0;--good-bg:#12382a;
--bad:#ffa3a3;--bad-bg:#451c1f;--none:#c0cad6;--none-bg:#2a3441;--note:#f6dd9a;
--note-bg:#362b10;--note-line:#6d5820}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.6 system-ui,
-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,"DejaVu Sans",sans-serif}
main{max-width:1080px;margin:0 auto;padding:40px 24px 72px}
h1{font-size:2rem;line-height:1.2;margin:0 0 .6rem;letter-spacing:-.015em}
h2{font-size:1.3rem;line-height:1.3;margin:3.2rem 0 .5rem;padding-top:1.1rem;
border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.6rem 0 .4rem}
p,ul{margin:.5rem 0 1rem}p,.prose li{max-width:74ch}
.lead{font-size:1.12rem}.muted,.empty,caption{color:var(--muted)}
.empty{background:var(--panel);border:1px dashed var(--line);border-radius:10px;
padding:12px 16px}
.banner{background:var(--note-bg);color:var(--note);border:1px solid var(--note-line);
border-radius:10px;padding:12px 16px;margin:1.1rem 0;max-width:none}
.cards{display:grid;grid-template-columns:repeat(3,1fr);gap:14px;
margin:1.3rem 0;padding:0;list-style:none}
.cards li{background:var(--panel);border:1px solid var(--line);border-radius:12px;
padding:16px 18px}
.cards .what{font-size:.9rem;color:var(--muted)}
.cards .big{font-size:2rem;font-weight:650;line-height:1.25;letter-spacing:-.02em;
font-variant-numeric:tabular-nums}
.cards .from{font-size:.9rem;font-variant-numeric:tabular-nums}
.badge{display:inline-block;border-radius:99px;padding:1px 10px;font-size:.82rem;
font-weight:600;background:var(--none-bg);color:var(--none);white-space:nowrap}
.badge.gain{background:var(--good-bg);color:var(--good)}
.badge.loss{background:var(--bad-bg);color:var(--bad)}
.scroll{overflow-x:auto;margin:.8rem 0 1.2rem;border:1px solid var(--line);
border-radius:10px}
.scroll:focus-visible,summary:focus-visible{outline:3px solid var(--pacx);
outline-offset:2px}
table{border-collapse:collapse;width:100%;font-size:.92rem;
font-variant-numeric:tabular-nums}
caption{text-align:left;padding:10px 11px 4px;font-size:.88rem}
th,td{padding:7px 11px;text-align:right;border-top:1px solid var(--line);
vertical-align:top;white-space:nowrap}
thead th{border-top:0;font-weight:600;vertical-align:bottom}
thead th[scope=colgroup]{text-align:center;text-transform:capitalize}
th:first-child{text-align:left}thead tr+tr th:first-child{text-align:right}
tbody th{font-weight:500;white-space:normal;min-width:9.5em}
td .badge{margin-top:3px;font-size:.74rem;padding:0 8px}
td small,th small{display:block;color:var(--muted);font-size:.8rem;font-weight:400;
line-height:1.35}
th[scope=rowgroup]{background:var(--panel);font-size:.82rem;font-weight:600;
color:var(--muted)}
tr.mark th,tr.mark td{background:color-mix(in srgb,var(--pacx) 8%,transparent);
font-weight:650}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));
gap:18px;align-items:start}
figure{margin:0}.chart{background:var(--panel);border:1px solid var(--line);
border-radius:12px;padding:14px 14px 10px;max-width:540px;break-inside:avoid}
figcaption{font-weight:600;font-size:.95rem;margin-bottom:4px}
.chart>svg{display:block;width:100%;height:auto;font-size:12px;fill:var(--ink)}
svg text{fill:var(--muted)}svg .axis{fill:var(--ink)}.end{text-anchor:end}
.mid{text-anchor:middle}.grid{stroke:var(--line);fill:none}
.axisline{stroke:var(--muted);fill:none}
.reference{stroke:var(--muted);stroke-dasharray:3 4;fill:none}
.line{fill:none;stroke:var(--c);stroke-width:1.8;stroke-linejoin:round}
.whisker{stroke:var(--c);stroke-width:1.3;opacity:.65;fill:none}.dot{fill:var(--c)}
.bar{stroke:var(--c);stroke-width:3;stroke-linecap:round}
.pacx{--c:var(--pacx)}.mae{--c:var(--mae)}.line.pacx,.line.mae{stroke-width:3}
.s1{--c:var(--s1)}.s2{--c:var(--s2)}.s3{--c:var(--s3)}.s4{--c:var(--s4)}
.s5{--c:var(--s5)}.line.s1{stroke-dasharray:2 3}.line.s2{stroke-dasharray:7 3}
.line.s3{stroke-dasharray:9 3 2 3}.line.s4{stroke-dasharray:4 2}
.line.s5{stroke-dasharray:1 2}.line.top{--c:var(--ink);stroke-dasharray:10 4}
.top{--c:var(--ink)}.dot.gain,.bar.gain{--c:var(--good)}
.dot.loss,.bar.loss{--c:var(--bad)}.dot.not,.bar.not{--c:var(--none)}
.legend{display:flex;flex-wrap:wrap;gap:2px 16px;list-style:none;margin:4px 0 0;
padding:0;font-size:.84rem;color:var(--muted)}
.legend svg{width:26px;height:10px;margin-right:6px;vertical-align:middle}
.images{display:grid;gap:18px 30px}
.images.three{grid-template-columns:repeat(auto-fill,minmax(min(100%,310px),1fr))}
.images.four{grid-template-columns:repeat(auto-fill,minmax(min(100%,460px),1fr))}
.row{display:grid;grid-auto-flow:column;grid-auto-columns:1fr;gap:6px;
break-inside:avoid}
.row img{width:100%;height:auto;display:block;border-radius:6px;background:#000}
.row figcaption{font-weight:400;font-size:.78rem;color:var(--muted);margin:2px 0 0}
details{border:1px solid var(--line);border-radius:10px;margin:.6rem 0;
padding:0 14px}summary{cursor:pointer;padding:10px 0;font-weight:600}
pre{overflow-x:auto;background:var(--panel);border-radius:8px;padding:12px;
font:.82rem/1.5 ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace}
.cols{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,260px),1fr));
gap:0 28px}
@media (max-width:560px){main{padding:24px 14px 48px}h1{font-size:1.55rem}
.lead{font-size:1.03rem}th,td{padding:6px 9px}tbody th{min-width:7.5em}
.cards{grid-template-columns:1fr}}
@media print{main{padding:0;max-width:none}body{font-size:11pt}
.scroll{overflow:visible;border:0}h2{break-after:avoid}tr,.cards li{break-inside:avoid}
details::details-content{content-visibility:visible;height:auto}
pre{white-space:pre-wrap}th,td{padding:3px 6px}}
"""


def document(title: str, body: str) -> str:
    """A complete HTML document with the style sheet inline and no script."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        # An inline icon: otherwise a browser asks a server for one.
        f'<link rel="icon" href="data:,">\n<title>{html.escape(title)}</title>\n'
        f"<style>{CSS}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )


def section(title: str, body: str, empty: str = "") -> str:
    """A titled section; `empty` is said instead where there is no body."""
    body = body or f'<p class="empty">{html.escape(empty)}</p>'
    return f"<section>\n<h2>{html.escape(title)}</h2>\n{body}\n</section>\n"


def paragraph(text: str, kind: str = "") -> str:
    """An escaped <p>."""
    attribute = f' class="{kind}"' if kind else ""
    return f"<p{attribute}>{html.escape(text)}</p>\n"


def details(summary: str, body: str) -> str:
    """A part that opens on request, and is open in print."""
    return f"<details><summary>{html.escape(summary)}</summary>{body}</details>\n"


def table(caption: str, head: str, body: str) -> str:
    """A table that scrolls sideways on narrow screens, also by keyboard."""
    text = html.escape(caption)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text}">'
        f"<table><caption>{text}</caption><thead>{head}</thead>"
        f"<tbody>{body}</tbody></table></div>\n"
    )


def simple_table(
    caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]
) -> str:
    """A table of text: the first cell of each row is its header."""
    head = "".join(f'<th scope="col">{html.escape(h)}</th>' for h in heads)
    body = ""
    for first, *rest in rows:
        cells = "".join(f"<td>{html.escape(text)}</td>" for text in rest)
        body += f'<tr><th scope="row">{html.escape(first)}</th>{cells}</tr>'
    return table(caption, f"<tr>{head}</tr>", body)


def image_row(images: Sequence[tuple[str, str, str]]) -> str:
    """(PNG URI, alternative text, caption) side by side."""
    figures = "".join(
        f'<figure><img src="{uri}" alt="{html.escape(alt)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for uri, alt, caption in images
    )
    return f'<div class="row">{figures}</div>'
