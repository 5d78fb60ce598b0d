"""Looks of the demo's page: one style sheet, light and dark, from a phone to a desk.

Invariant: it names no address; nothing is loaded, and nothing moves for those who asked for less motion.
"""

from __future__ import annotations

STYLE = """
:root { --ink: #17181d; --soft: #636572; --line: #e4e5ec; --paper: #f7f7fa; --card: #fff; --accent: #4257e0;
  --ok: #14804a; --no: #c2402f; --okbg: #e5f5ec; --nobg: #fcebe8; --glow: #e9ecff; color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #eeeef3; --soft: #a0a1ae; --line: #2d2e38; --paper: #121318; --card: #1b1c23; --accent: #93a2ff;
    --ok: #58c98c; --no: #ff8b7b; --okbg: #17301f; --nobg: #3a1f1b; --glow: #22264a; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 56px 24px 72px; }
header { text-align: center; padding-bottom: 8px; }
.brand { font-weight: 700; letter-spacing: 0.02em; color: var(--accent); margin: 0; max-width: none; }
h1 { font-size: clamp(30px, 5.4vw, 52px); line-height: 1.1; letter-spacing: -0.03em; margin: 6px 0 14px;
  text-wrap: balance; }
h2 { font-size: 26px; letter-spacing: -0.02em; margin: 72px 0 4px; }
h3 { font-size: 17px; margin: 28px 0 10px; }
p { margin: 4px 0 18px; color: var(--soft); max-width: 46em; text-wrap: pretty; }
header .lead { font-size: 19px; margin: 0 auto 28px; max-width: 38em; }
a { color: var(--accent); }
.grid { display: grid; gap: 16px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 16px; padding: 16px; min-width: 0; }
.prompt { font-weight: 600; margin: 0 0 12px; color: var(--ink); line-height: 1.35; }
.tag { display: inline-block; white-space: nowrap; font-size: 11.5px; font-weight: 600; line-height: 1.5;
  color: var(--accent); background: var(--glow); border-radius: 999px; padding: 0 8px; vertical-align: 1px; }
figure { margin: 0; min-width: 0; }
img { display: block; width: 100%; height: auto; border-radius: 10px; background: #fff; }
figcaption { font-size: 12.5px; color: var(--soft); margin-top: 6px; line-height: 1.35; overflow-wrap: anywhere; }
.ok { color: var(--ok); font-weight: 600; } .no { color: var(--no); font-weight: 600; }
.facts { display: flex; flex-wrap: wrap; gap: 3px; margin-top: 7px; }
.facts i { width: 9px; height: 9px; border-radius: 50%; background: var(--ok); }
.facts i.miss { background: none; border: 2px solid var(--no); border-radius: 2px; transform: rotate(45deg); }
.heroes { text-align: left; }
.hero { display: grid; grid-template-columns: minmax(150px, 208px) 1fr; gap: 14px 26px; align-items: center; }
.draft { font-style: italic; font-size: 13px; line-height: 1.35; margin: -6px 0 12px; color: var(--soft); }
.hero .prompt, .hero .draft { grid-column: 1 / -1; margin: 0; }
.turn .draft { margin: 2px 6px 8px; max-width: 260px; }
.strip { display: grid; gap: 8px; }
.strip figure { text-align: center; } .hero .strip img { max-width: 150px; margin: 0 auto; }
.strip figcaption { margin-top: 4px; font-size: 12px; }
.growing { position: relative; border-radius: 14px; overflow: hidden; }
.growing img { border-radius: 14px; }
.growing img + img { position: absolute; inset: 0; height: 100%; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 28px 0 0;
  padding: 0;
  list-style: none; text-align: left; }
.tiles li { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 12px 14px;
  font-size: 13.5px;
  line-height: 1.35; color: var(--soft); }
.tiles b { display: block; font-size: 24px; line-height: 1.25; color: var(--ink); letter-spacing: -0.02em; }
.tiles b small { font-size: 15px; font-weight: 500; color: var(--soft); letter-spacing: 0; }
.bar { display: block; height: 4px; border-radius: 2px; background: var(--line); margin: 8px 0 6px; overflow: hidden; }
.bar span { display: block; height: 100%; background: var(--ok); }
.chips { display: flex; flex-wrap: wrap; justify-content: center; gap: 6px 18px; margin: 16px 0 0; padding: 0;
  list-style: none;
  font-size: 14px; color: var(--soft); }
.look { display: grid; grid-template-columns: minmax(110px, 150px) 1fr; gap: 16px; align-items: start; }
.look .tag { font-size: 11px; padding: 0 5px; }
.answers { margin: 0; padding: 0; list-style: none; font-size: 14.5px; }
.answers li { display: grid; grid-template-columns: 1fr auto; gap: 2px 12px; padding: 5px 0;
  border-top: 1px solid var(--line); }
.answers li:first-child { border-top: 0; padding-top: 0; }
.answers .q { color: var(--soft); }
.answers .a { text-align: right; font-weight: 600; }
.answers .cap { grid-column: 1 / -1; }
.answers .truth { grid-column: 1 / -1; text-align: right; font-size: 12.5px; color: var(--soft); }
.edit { display: grid; grid-template-columns: 1fr 18px 1fr; gap: 8px; align-items: center; }
.edit .arrow { color: var(--soft); text-align: center; font-size: 18px; }
.verdict { margin: 12px 0 0; font-size: 13.5px; color: var(--soft); }
.named { text-align: center; padding: 12px; }
.named .said { display: block; color: var(--ink); font-weight: 600; font-size: 13.5px; }
.talk { display: flex; flex-direction: column; gap: 10px; }
.turn { border-radius: 18px; padding: 9px 14px; width: fit-content; max-width: 88%; border: 1px solid var(--line); }
.turn p { margin: 0; color: inherit; }
.turn.user { align-self: flex-end; background: var(--accent); border-color: var(--accent); color: #fff;
  border-bottom-right-radius: 6px; }
@media (prefers-color-scheme: dark) { .turn.user { color: #10122a; } }
.turn.assistant { background: var(--paper); border-bottom-left-radius: 6px; }
.turn.picture { padding: 6px 6px 8px; }
.turn img { width: 150px; border-radius: 13px; }
.turn .verdict { margin: 6px 6px 0; font-size: 12.5px; }
.how { counter-reset: step; grid-template-columns: repeat(auto-fit, minmax(min(260px, 100%), 1fr)); }
.how .card::before { counter-increment: step; content: counter(step); display: grid; place-items: center;
  width: 28px; height: 28px;
  border-radius: 50%; background: var(--glow); color: var(--accent); font-weight: 700; margin-bottom: 10px; }
.how p { margin: 0; } .how b { color: var(--ink); }
.pyramid { margin-top: 16px; } .pyramid svg { display: block; width: 100%; max-width: 760px; height: auto;
  margin: 0 auto; }
.pyramid rect { stroke: var(--line); }
.pyramid text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: var(--soft); }
pre { margin: 0; padding: 16px; overflow-x: auto;
  font: 14px/1.7 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
code { font: 0.93em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre .rem { color: var(--soft); }
footer { margin-top: 64px; border-top: 1px solid var(--line); padding-top: 18px; font-size: 13.5px;
  color: var(--soft); }
@media (max-width: 560px) {
  main { padding: 32px 16px 56px; }
  h2 { margin-top: 52px; font-size: 23px; }
  .card { padding: 13px; }
  .hero { grid-template-columns: 1fr; } .hero .growing { width: min(210px, 70%); margin: 0 auto; }
  .facts { gap: 2px; } .facts i { width: 7px; height: 7px; }
  .strip { gap: 5px; } .strip figcaption { font-size: 11px; }
  .look { grid-template-columns: 104px 1fr; gap: 12px; } .answers { font-size: 13.5px; }
  .tiles { grid-template-columns: 1fr 1fr; gap: 8px; }
}
"""

SECONDS_PER_SCALE = 0.9
FINISHED_SHARE = 3
"""The finished picture stays for so many scales' time."""


def growing_style(scales: int) -> str:
    """Key frames that lay the pictures of a drawing of so many scales on top of each other, again and again."""
    ticks = scales - 1 + FINISHED_SHARE
    begin = -(scales + 0.5) * SECONDS_PER_SCALE  # finished at first, also where nothing moves
    seconds = f"{ticks * SECONDS_PER_SCALE:.1f}s linear {begin:.2f}s infinite"
    frames, moving = [], []
    drawing = f".scales-{scales}"
    for index in range(scales):
        start, shown = 100 * index / ticks, 100 * (index + 0.35) / ticks
        end = 100.0 if index == scales - 1 else 100 * (index + 1) / ticks
        lit, unlit = "{ box-shadow: 0 0 0 2.5px var(--accent) }", "{ box-shadow: none }"
        before = f"0%, {start - 0.01:.2f}% {unlit} " if index else ""
        after = f" {end + 0.01:.2f}%, 100% {unlit}" if end < 100 else ""
        frames.append(f"@keyframes lit-{scales}-{index} {{ {before}{start:.2f}%, {end:.2f}% {lit}{after} }}")
        moving.append(
            f"{drawing} .strip figure:nth-child({index + 1}) img {{ animation: lit-{scales}-{index} {seconds} }}"
        )
        if index:
            hidden, seen = "{ opacity: 0 }", "{ opacity: 1 }"
            frames.append(f"@keyframes grow-{scales}-{index} {{ 0%, {start:.2f}% {hidden} {shown:.2f}%, 100% {seen} }}")
            moving.append(
                f"{drawing} .growing img:nth-child({index + 1}) {{ animation: grow-{scales}-{index} {seconds} }}"
            )
    return "\n".join([*frames, "@media (prefers-reduced-motion: no-preference) {", *moving, "}"])
