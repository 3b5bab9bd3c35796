"""How a report's page looks: on a phone, on a desk, in the dark and in print."""

STYLE = """
:root { color-scheme: light dark; --text: #1a1a1a; --soft: #5a5a5a; --line: #d8d8d8; --page: #ffffff; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e8e8e8; --soft: #a8a8a8; --line: #3c3c3c; --page: #161616; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 84rem; padding: 1rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; line-height: 1.25; }
p, dl { max-width: 52rem; }
p.note, dt { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.3rem 0.5rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th.words, td.words { text-align: left; min-width: 10rem; }
.keep, .whole { white-space: nowrap; }
nav ul { columns: 24rem auto; padding-left: 1.2rem; } a { color: inherit; }
th:first-child { text-align: left; white-space: nowrap; position: sticky; left: 0; background: var(--page); }
figure { margin: 1.5rem 0; } figure svg { display: block; width: 100%; height: auto; }
figure svg.narrow { display: none; } figure text { fill: currentColor; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.2rem 1rem; }
dd { margin: 0; overflow-wrap: anywhere; }
pre { overflow-x: auto; padding: 0.7rem; border: 1px solid var(--line); }
@media screen and (max-width: 44rem) {
  dl { grid-template-columns: 1fr; } dt { margin-top: 0.4rem; }
  th:first-child { white-space: normal; min-width: 7.5rem; max-width: 8.5rem; }
  th, td { padding: 0.3rem 0.4rem; }
  figure svg.broad { display: none; } figure svg.narrow { display: block; }
}
@page { margin: 14mm; }
@media print {
  :root { color-scheme: light; --text: #000000; --soft: #333333; --line: #999999; --page: #ffffff; }
  body { max-width: none; padding: 0; font-size: 10pt; } p, dl { max-width: none; } h2 { break-after: avoid; }
  nav { display: none; } figure, tr, p.note { break-inside: avoid; }
  tr:nth-child(-n+3) { break-after: avoid; } tr:nth-last-child(-n+3), p.note { break-before: avoid; }
  .wide { overflow: visible; } table { font-size: 7.5pt; }
  th, td { padding: 0.15rem 0.3rem; } .keep { white-space: normal; } th.words, td.words { min-width: 0; }
  figure { margin: 0.7rem 0; }
  th:first-child { white-space: normal; position: static; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
}
"""
