"""Write the skeleton of a chapter, and the wrong answers to its exercises: it passes the tests of a chapter.

python scripts/chapter.py 17_name
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from repository import colab_link, opened, repository, setup_cell

import notebooks
from companion._files import write_aside

ROOT = Path(__file__).resolve().parent.parent

FIRST = """\
# Title

[Open in Colab]({link}) · about 2 minutes to read · tier `smoke` · CPU: not measured · GPU: not measured

What is asked? Two to five sentences, and then the picture that answers it.
"""
IMPORTS = """\
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from companion import plots

plots.style()
"""
PICTURE = """\
x = torch.linspace(0, 1, 50)
figure, axis = plt.subplots(figsize=(6.4, 3))
axis.plot(x, x.square())
axis.text(0.8, 0.5, "$x^2$", fontsize=10)
axis.set(xlabel="x", ylabel="y")
plt.show()
"""
GOALS = """\
After this chapter you will be able to

- **write** the idea in a few lines;
- **check** it against a case that can be solved;
- **judge** where it helps.

**You should know** what stands in [chapter 1](01_sparsity.ipynb).
"""
IDEA = """\
## A question

```{{prf:definition}} The idea
:label: def-{label}

The *idea* of $x$ is $x^2$.
```

The few lines that are the idea, and a check against what is known:
"""
CODE = """\
def idea(x: Tensor) -> Tensor:
    return x * x


print(f"the idea of 3 is {float(idea(torch.tensor(3.0))):.0f}")
"""
OWN = """\
## In your own network

```python
idea(features)
```

Do not use it where it has not been tested.
"""
END = """\
## Summary

- What is known now.
- What was measured, and how sure it is.
- What it does not say.

## Which method when

| you have | take |
|---|---|
| one case | this |
| another | that |

## Quiz

{quiz}

## Exercises

Each exercise has a test: define the function, then call the test with it.
"""
QUIZ = "**{number}.** What follows?\n\n:::{{dropdown}} Answer\nWhat follows, and in one sentence why.\n:::"
EXERCISE = """\
```{{exercise}} The {what}
:label: ex-{label}-{number}

★ · 10 minutes

Write `answer{number}(x)`, the {what} of a vector.
```
"""
TEST = """\
def test_{number}(answer) -> None:
    x = torch.tensor([1.0, -2.0, 4.0])
    assert torch.allclose(answer(x), torch.tensor({value})), "the {what}"
    print("exercise {number}: passed")
"""
SOLUTION = "```{{solution-start}} ex-{label}-{number}\n:class: dropdown\n```\n\nAs its definition says."
ANSWER = "def answer{number}(x: Tensor) -> Tensor:\n    return {right}\n\n\ntest_{number}(answer{number})"
REFERENCES = "## References and further reading\n\n- {cite:t}`kornblith2019similarity`: what it says, in a few words."

# What is asked for, its value for (1, −2, 4), the answer, and wrong ones.
EXERCISES = (
    ("sum", "3.0", "x.sum()", {"the mean": "x.mean()", "of sizes": "x.abs().sum()", "of squares": "x.square().sum()"}),
    ("mean", "1.0", "x.mean()", {"the sum": "x.sum()", "of sizes": "x.abs().mean()", "the largest": "x.max()"}),
    ("largest size", "4.0", "x.abs().max()", {"the smallest": "x.abs().min()", "the sum": "x.sum()", "a size": "x[0]"}),
)


def write(root: Path, name: str) -> Path:
    """The new notebook `notebooks/NAME.ipynb`, executed, and its wrong answers in `tests/exercises/NAME.py`.

    Raises:
        ValueError: a name of another form than `17_name`, or one that is there.
    """
    path, table = root / "notebooks" / f"{name}.ipynb", root / "tests" / "exercises" / f"{name}.py"
    if not re.fullmatch(r"\d\d_[a-z][a-z0-9_]*", name):
        raise ValueError(f"got {name!r}; a chapter is named by two digits and words, such as 17_name")
    if path.exists() or table.exists():
        raise ValueError(f"got {name!r}; it is there: {path if path.exists() else table}")
    label = name[3:].replace("_", "-")
    picture = new_code_cell(PICTURE.strip(), metadata={"tags": ["hide-input"]})
    picture.metadata["mystnb"] = {
        "figure": {"caption": "**The finding in one sentence.** Then what is drawn.", "name": f"fig-{label}"},
        "image": {"alt": "A curve that rises from 0 to 1, ever more steeply."},
    }
    quiz = "\n\n".join(QUIZ.format(number=number) for number in (1, 2, 3))
    cells = [
        new_markdown_cell(FIRST.format(link=colab_link(repository(ROOT)[0], f"notebooks/{name}.ipynb"))),
        new_code_cell(setup_cell(*opened(ROOT)), metadata={"tags": ["hide-input"]}),
        new_code_cell(IMPORTS.strip(), metadata={"tags": ["hide-input"]}),
        picture,
        new_markdown_cell(GOALS),
        new_markdown_cell(IDEA.format(label=label)),
        new_code_cell(CODE.strip(), metadata={"tags": ["nbval-check-output"]}),
        new_markdown_cell(OWN),
        new_markdown_cell(END.format(quiz=quiz)),
    ]
    for number, (what, value, right, _) in enumerate(EXERCISES, start=1):
        known = {"number": number, "what": what, "value": value, "right": right, "label": label}
        cells += [
            new_markdown_cell(EXERCISE.format(**known)),
            new_code_cell(TEST.format(**known).strip()),
            new_markdown_cell(SOLUTION.format(**known)),
            new_code_cell(ANSWER.format(**known)),
            new_markdown_cell("```{solution-end}\n```"),
        ]
    cells.append(new_markdown_cell(REFERENCES))
    write_aside(path, nbformat.writes(new_notebook(cells=cells)) + "\n")
    notebooks.run(path)
    wrong = "".join(
        f'    "ex-{label}-{number}": {{\n'
        + "".join(f'        "{mistake}": ("{right}", "{answer}"),\n' for mistake, answer in answers.items())
        + "    },\n"
        for number, (_, _, right, answers) in enumerate(EXERCISES, start=1)
    )
    title = f'"""Wrong answers to the exercises of chapter {int(name[:2])}, by their mistake."""'
    write_aside(table, f"{title}\n\nWRONG = {{\n{wrong}}}\n")
    return path


if __name__ == "__main__":
    print(f"{write(ROOT, sys.argv[1])}: list it in _toc.yml, book/how_to_read.md and README.md")
