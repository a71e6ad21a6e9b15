"""What the scripts and the library share, a folder a subject.

Start with `sweep`, how a script measures every checkpoint. Then read one analysis (`circuits`, `heads`,
`algorithms`, `task_performance.py`), and what all of them stand on: `models`, `tasks`, `results`, `config`.
"""
