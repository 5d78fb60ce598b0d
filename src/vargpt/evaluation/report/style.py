"""The look of the pages: light and dark, wide and narrow.

Invariant: nothing is loaded from elsewhere, and colour is never the only sign of right and wrong.
"""

from __future__ import annotations

from html import escape

STYLE = """
:root { --ink: #1d1d22; --soft: #62626d; --line: #e4e4ea; --paper: #fbfbfd; --card: #fff; --accent: #3a5bd9;
  --fill: #9db2f3; --track: #ecedf3; --good: #17803f; --bad: #bb4336; color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececf1; --soft: #a0a0ac; --line: #2c2c35; --paper: #141418; --card: #1d1d23; --accent: #9db2ff;
    --fill: #4a61b8; --track: #2a2a33; --good: #4cc07a; --bad: #ec7e71; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 44px 24px 80px; }
h1 { font-size: 38px; line-height: 1.15; letter-spacing: -0.02em; margin: 0 0 6px; overflow-wrap: anywhere; }
h2 { font-size: 23px; letter-spacing: -0.01em; margin: 60px 0 4px; }
h3 { font-size: 15px; margin: 30px 0 10px; font-weight: 600; }
h3 small, h2 small { color: var(--soft); font-weight: 400; font-size: 14px; letter-spacing: 0; }
p { margin: 4px 0 14px; color: var(--soft); max-width: 46em; }
.lead { font-size: 19px; overflow-wrap: anywhere; }
.facts, nav { display: flex; flex-wrap: wrap; gap: 8px; margin: 14px 0 0; padding: 0; list-style: none; }
.facts li { border: 1px solid var(--line); background: var(--card); border-radius: 999px; padding: 3px 12px;
  font-size: 14px; color: var(--soft); }
nav { margin-top: 20px; font-size: 15px; gap: 4px 18px; } a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
.tiles { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); margin-top: 26px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 14px 16px 15px;
  display: flex; flex-direction: column; }
.tile b { font-size: 28px; letter-spacing: -0.02em; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; } .tile .of { flex: 1; line-height: 1.35; margin-bottom: 6px; }
.tile svg { margin-top: 8px; } .tile i { font-style: normal; display: block; }
table { border-collapse: collapse; width: 100%; font-size: 15px; margin: 12px 0 4px;
  font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; font-size: 13px; color: var(--soft); }
td, th { padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line); vertical-align: middle; }
.n, .v { text-align: right; white-space: nowrap; } .v { font-weight: 600; }
.i { white-space: nowrap; color: var(--soft); } .plot { width: 30%; min-width: 120px; padding-right: 0; }
.compare .plot { width: 23%; } .a, .b { text-align: right; white-space: nowrap; }
.w { white-space: nowrap; font-size: 14px; }
svg { display: block; } svg.bar, svg.forest { width: 100%; overflow: visible; } svg.bar { height: 12px; }
svg.forest { height: 18px; } svg.histogram { width: 100%; max-width: 440px; height: auto; margin: 4px 0 0; }
svg text { fill: var(--soft); font-size: 11.5px; font-family: inherit; }
.cards { display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(min(236px, 100%), 1fr)); }
.cards.wide { grid-template-columns: repeat(auto-fill, minmax(min(310px, 100%), 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 12px; font-size: 13.5px;
  line-height: 1.4; overflow-wrap: anywhere; }
.strip { display: flex; gap: 8px; margin-bottom: 9px; } figure { margin: 0; flex: 0 1 128px; min-width: 0; }
figure img { width: 100%; display: block; border-radius: 8px; border: 1px solid var(--line); background: #fff; }
figcaption { font-size: 11.5px; color: var(--soft); margin-top: 3px; text-align: center; }
.prompt { font-weight: 600; color: var(--ink); }
dl.said { margin: 4px 0 0; display: grid; gap: 1px 8px; grid-template-columns: auto 1fr; }
dl.said dt { color: var(--soft); }
dl.said dd { margin: 0; display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 5; overflow: hidden; }
.marks { margin-top: 6px; display: flex; flex-wrap: wrap; gap: 2px 12px; color: var(--soft); }
.ok { color: var(--good); font-weight: 600; } .no { color: var(--bad); font-weight: 600; }
dl.conditions { display: grid; grid-template-columns: minmax(130px, max-content) 1fr; gap: 0; font-size: 14px;
  margin: 12px 0; } dl.conditions dt { color: var(--soft); } dl.conditions dd { margin: 0; overflow-wrap: anywhere;
  font-variant-numeric: tabular-nums; }
dl.conditions > * { padding: 4px 20px 4px 0; border-bottom: 1px solid var(--line); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13.5px; color: var(--soft); margin: 0 0 4px; }
footer { margin-top: 60px; color: var(--soft); font-size: 14px; }
@media (max-width: 640px) {
  main { padding: 28px 16px 56px; } h1 { font-size: 30px; } h2 { margin-top: 46px; } .lead { font-size: 17px; }
  .tiles { grid-template-columns: 1fr 1fr; } .tile b { font-size: 24px; }
  .card.one { display: grid; grid-template-columns: 104px 1fr; gap: 0 14px; }
  .card.one .strip { margin: 0; grid-row: 1 / 9; }
  thead { display: none; } table, tbody { display: block; }
  tr { display: grid; grid-template-columns: 1fr auto; gap: 0 12px; padding: 8px 0;
    border-bottom: 1px solid var(--line); }
  td { border: 0; padding: 0; } td.i, td.n { font-size: 13px; color: var(--soft); }
  td.n::before { content: "n = "; } td.plot { grid-column: 1 / -1; width: auto; margin-top: 5px; }
  .compare tr, .differ tr { grid-template-columns: 6.5em auto 1fr; } .compare td:first-child { grid-column: 1 / 3; }
  td.a, td.b { text-align: left; } .compare td.plot { width: auto; }
  td.a::before { content: "A "; } td.b::before { content: "B "; } .compare td.n { grid-area: 1 / 3; }
  .compare td.w { grid-area: 3 / 1 / 4 / 3; } .compare td.i { grid-area: 3 / 3; text-align: right; }
  .differ td:first-child { grid-column: 1 / -1; color: var(--soft); }
  td.plot:empty { display: none; } dl.conditions { grid-template-columns: 1fr; } dl.conditions dt { border: 0;
  padding-bottom: 0; } dl.conditions dd { padding-top: 0; }
}
@media print { body { background: #fff; } .card, .tile { break-inside: avoid; } }
"""


def document(title: str, body: str) -> str:
    """A whole page; `body` is HTML already."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )


def facts(items: list[str]) -> str:
    """Short facts as a row of labels."""
    return '<ul class="facts">' + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def conditions_list(conditions: dict[str, object]) -> str:
    """What numbers depend on, as terms and values; entries within entries are set out one by one."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in flattened(conditions))
    return f'<dl class="conditions">{rows}</dl>'


def flattened(conditions: dict[str, object], above: str = "") -> list[tuple[str, str]]:
    """Entries as text, those of inner tables under `outer: inner`."""
    found: list[tuple[str, str]] = []
    for key, value in conditions.items():
        name = above + key.replace("_", " ")
        if isinstance(value, dict):
            found += flattened(value, f"{name}: ")
        elif isinstance(value, (list, tuple)):
            found.append((name, ", ".join(str(item) for item in value)))
        elif isinstance(value, int) and not isinstance(value, bool):
            found.append((name, f"{value:,}" if abs(value) >= 100_000 else str(value)))
        else:
            found.append((name, "not known" if value is None else str(value)))
    return found
