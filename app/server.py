"""gunicorn, with the application's modules imported before it forks, so that its processes share them.

Modules only: what connects is made after the fork, by `create_app`.
"""

import runpy

import app.web
import app.workspaces.models  # noqa: F401 - foreign keys name its table, so it must be known before a flush

if __name__ == "__main__":
    runpy.run_module("gunicorn", run_name="__main__", alter_sys=True)
