"""Tasks for lm-eval on the bundled held-out text: they need no network and no data files.

With lm-eval's own command line: `--include_path` and the folder that
`python -c "from convert_attn.eval import tasks; print(tasks.FOLDER)"` prints.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
