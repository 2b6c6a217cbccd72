"""gunicorn, with the application's modules imported before it forks, so that its processes share them.

Modules only: what connects is made after the fork, by `create_app`.
"""

import runpy

import app.web  # noqa: F401 - the point of this module

if __name__ == "__main__":
    runpy.run_module("gunicorn", run_name="__main__", alter_sys=True)
