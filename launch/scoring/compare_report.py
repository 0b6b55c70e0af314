"""Write the comparison as a chart and as Markdown. Used by `launch.scoring.compare`; not a command."""

from __future__ import annotations

from html import escape
from typing import Any


def chart(rows: list[dict[str, Any]]) -> str:
    """A self-contained SVG: a dot with its interval for every score, a red line for chance."""
    left, width, step = 250, 420, 22
    sets = list(dict.fromkeys((row["config"], row["suite"]) for row in rows))
    lines, y = [], 12
    for config, suite in sets:
        y += step
        lines.append(f'<text x="0" y="{y}" font-weight="600">{escape(suite)} ({escape(config)})</text>')
        for row in (r for r in rows if (r["config"], r["suite"]) == (config, suite)):
            y += step
            x, low, high, chance = (left + width * row[k] / 100 for k in ("value", "low", "high", "chance"))
            lines += [
                f'<text x="14" y="{y + 4}">{escape(row["model"])}</text>',
                f'<line x1="{chance:.1f}" x2="{chance:.1f}" y1="{y - 9}" y2="{y + 9}" stroke="#dc2626"/>',
                f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}" stroke="#2563eb" stroke-width="2"/>',
                f'<circle cx="{x:.1f}" cy="{y}" r="4" fill="#2563eb"/>',
                f'<text x="{left + width + 12}" y="{y + 4}">{row["value"]:.1f} %</text>',
            ]
    axis = y + 24
    for mark in (0, 25, 50, 75, 100):
        x = left + width * mark / 100
        lines.append(f'<line x1="{x}" x2="{x}" y1="14" y2="{axis - 12}" stroke="#888" stroke-opacity=".25"/>')
        lines.append(f'<text x="{x}" y="{axis}" text-anchor="middle">{mark}</text>')
    body = "\n".join(lines)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 80} {axis + 10}" font-size="13" '
        f'font-family="system-ui, sans-serif" fill="#57606a">\n{body}\n</svg>\n'
    )


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown tables; it links to the chart in compare.svg."""
    lines = [
        "# Comparison",
        "",
        "![scores with 95 % intervals, chance in red](compare.svg)",
        "",
        "## Measured here",
        "",
    ]
    lines += ["| model | set | accuracy | 95 % interval | n | chance | protocol |", "|---|---|---:|---|---:|---:|---|"]
    for row in report["scores"]:
        smoke = " (smoke)" if row["smoke"] else ""
        lines.append(
            f"| {row['model']} | {row['suite']}{smoke} | {row['value']:.1f} % | {row['low']:.1f} - {row['high']:.1f} | "
            f"{row['n']:,} | {row['chance']:.1f} | {row['config']}, {row['way']}; {row['protocol']}; config "
            f"{row['config_hash']}, OpenCompass {row['opencompass']}; decontamination: {row['decontamination']} |"
        )
    against = report["against"]
    lines += ["", f"## Against {against}", ""]
    lines += [
        "| model | set | difference | 95 % interval | p | p adjusted | verdict |",
        "|---|---|---:|---|---:|---:|---|",
    ]
    for pair in report["pairs"]:
        lines.append(
            f"| {pair['model']} | {pair['suite']} | {pair['difference']:+.1f} | {pair['low']:+.1f} - "
            f"{pair['high']:+.1f} | {pair['p']:.2g} | {pair['p_adjusted']:.2g} | {pair['verdict']}{pair['asked']} |"
        )
    if not report["pairs"]:
        lines.append("| no two models have scores for the same questions | | | | | | |")
    if report["bits"]:
        lines += [
            "",
            "## Bits per byte (lower is better)",
            "",
            "| model | source | bits/byte | 95 % interval | documents |",
        ]
        lines += ["|---|---|---:|---|---:|"]
        for row in report["bits"]:
            lines.append(
                f"| {row['model']} | {row['source']} | {row['bits_per_byte']:.4f} | {row['low']:.4f} - "
                f"{row['high']:.4f} | {row['documents']:,} |"
            )
        for row in report["bits_pairs"]:
            lines.append(
                f"| {row['model']} against {against} | {row['source']} | {row['difference']:+.4f} | "
                f"{row['low']:+.4f} - {row['high']:+.4f}: {row['verdict']} | {row['documents']:,} |"
            )
    lines += [
        "",
        "## Published by others, not measured here",
        "",
        "| model | parameters | C-Eval | CMMLU | protocol | source |",
    ]
    lines += ["|---|---|---:|---:|---|---|"]
    for row in report["published"]:
        scores = " | ".join(f"{row[name]:.2f}" if name in row else "-" for name in ("ceval", "cmmlu"))
        lines.append(f"| {row['model']} | {row['parameters']} | {scores} | {row['protocol']} | {row['source']} |")
    return "\n".join(lines) + "\n"
