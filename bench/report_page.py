"""Size of a report about 2 and 12 long runs, and how long a browser takes to draw it.

    .venv/bin/python bench/report_page.py RUN [BROWSER]

The run's metrics are repeated up to 20,000 steps and 200 validations each; the browser (chromium) is run headless.
"""

import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from bequest.report import page, record


def stretched(found: record.Record, number: int) -> record.Record:
    steps, validations = found.steps, found.validations
    lines = []
    for step in range(20_000):
        line = dict(steps[step % len(steps)])
        line |= {"step": step + 1, "tokens": (step + 1) * 8192, "seconds": step * 0.5}
        line |= {"student_flops": (step + 1) * 1e12, "loss": line["loss"] + 0.05 * number}
        lines.append(line)
        if step % 100 == 99:
            lines.append(
                {k: v for k, v in line.items() if k != "loss"}
                | {"valid": validations[step % len(validations)]["valid"]}
            )
    return replace(found, name=f"{found.name}-{number}", lines=lines)


def main() -> None:
    found = record.read(Path(sys.argv[1]))
    browser = sys.argv[2] if len(sys.argv) > 2 else "chromium"
    for count in (2, 12):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "report.html"
            text = page.page([stretched(found, number) for number in range(count)])
            ready = "<script>document.body.offsetHeight; document.title = 'ready ' + performance.now()</script></body>"
            path.write_text(text.replace("</body>", ready))
            command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom", f"file://{path}"]
            shown = subprocess.run(command, capture_output=True, text=True).stdout
            milliseconds = re.search(r"<title>ready ([\d.]+)", shown)
            opened = f"{float(milliseconds[1]):.0f} ms" if milliseconds else "not drawn"
            print(f"{count} runs: {len(text) / 1e6:.2f} MB, drawn after {opened}", flush=True)


if __name__ == "__main__":
    main()
