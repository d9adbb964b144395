"""The Mara pipeline `load_marketing_data`, which calls marketing-data-service.

Replace `load_marketing_data/__init__.py` by this file. It keeps the id of the
pipeline, so pipelines downstream stay the same. The service loads the tables,
which the old pipeline dropped, created and copied.

    MARKETING_DATA_SERVICE_URL         http://127.0.0.1:8000 when not set
    MARKETING_DATA_SERVICE_TOKEN_FILE  a file with the token, if the service has one
"""

import os
import shlex

from mara_pipelines.commands.http import HttpRequest
from mara_pipelines.pipelines import Pipeline, Task

SERVICE_URL = os.environ.get('MARKETING_DATA_SERVICE_URL', 'http://127.0.0.1:8000')
TOKEN_FILE = os.environ.get('MARKETING_DATA_SERVICE_TOKEN_FILE')


class LoadMarketingData(HttpRequest):
    """HttpRequest that prints the answer of a failed load, and keeps the token out of Mara's log.

    Mara runs `curl -sf`, which drops the body of a failure. That body names the
    table, the cause and the remedy. Needs curl 7.76.
    """

    def shell_command(self):
        # Pass the token through a file descriptor: every user of the host can read arguments.
        token = (f""" -H @<(printf 'Authorization: Bearer %s' "$(cat {shlex.quote(TOKEN_FILE)})")"""
                 if TOKEN_FILE else '')
        return super().shell_command().replace(
            'curl -sf', f'curl -sS --fail-with-body{token}', 1)


pipeline = Pipeline(
    id='load_marketing_data',
    description='Loads closed deals and marketing qualified leads through marketing-data-service',
    labels={'Schema': 'm_data'})

pipeline.add(
    Task(id='load',
         description='Loads both tables from one snapshot of the source, and waits until the load ends',
         commands=[LoadMarketingData(url=f'{SERVICE_URL}/load', method='POST')]))
