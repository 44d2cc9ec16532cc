"""nginx as a service behind a gateway."""

import grp
import os
import pwd
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Its workers, too, run as whoever runs the tests: pytest's temporary folders are closed to all others.
_CONFIGURATION = """
user {user} {group};
daemon off;
pid {folder}/nginx.pid;
error_log stderr;
worker_processes 1;
events {{ worker_connections 128; }}
http {{
  access_log off;
  default_type text/plain;
  client_body_temp_path {folder}/client_body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
{http}
}}
"""


def start_nginx(start: Callable[..., Any], program: str, folder: Path, http: str) -> Any:
    """Run the nginx `program`, with `http` as the content of that block, and its files in the new `folder`."""
    folder.mkdir()
    configuration = folder / "nginx.conf"
    user, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name
    configuration.write_text(_CONFIGURATION.format(user=user, group=group, folder=folder, http=http))
    return start([program, "-p", str(folder), "-e", "stderr", "-c", str(configuration)])
