"""The Mara pipeline `load_marketing_data`, by way of marketing-data-service.

Put it in the place of `load_marketing_data/__init__.py`: it keeps the id, so
that the pipelines downstream of it stay as they are, and asks the service for
a load where the old one dropped, created and copied the tables.

    MARKETING_DATA_SERVICE_URL         http://127.0.0.1:8000 when not set
    MARKETING_DATA_SERVICE_TOKEN_FILE  a file with the token, where there is one
"""

import os
import shlex

from mara_pipelines.commands.http import HttpRequest
from mara_pipelines.pipelines import Pipeline, Task

SERVICE_URL = os.environ.get('MARKETING_DATA_SERVICE_URL', 'http://127.0.0.1:8000')
TOKEN_FILE = os.environ.get('MARKETING_DATA_SERVICE_TOKEN_FILE')


class LoadMarketingData(HttpRequest):
    """HttpRequest that shows the answer of a failure, and keeps the token out of Mara's log.

    Mara runs `curl -sf`, which swallows the body of a failure; but there the
    service says which table failed, why, and what to do. Needs curl 7.76.
    """

    def shell_command(self):
        # By a file of bash's own, since everybody on the host sees the words of a command.
        token = (f""" -H @<(printf 'Authorization: Bearer %s' "$(cat {shlex.quote(TOKEN_FILE)})")"""
                 if TOKEN_FILE else '')
        return super().shell_command().replace(
            'curl -sf', f'curl -sS --fail-with-body{token}', 1)


pipeline = Pipeline(
    id='load_marketing_data',
    description='Has marketing-data-service load closed deals and marketing qualified leads',
    labels={'Schema': 'm_data'})

pipeline.add(
    Task(id='load',
         description='Loads both tables from one snapshot of the source, and waits for the end',
         commands=[LoadMarketingData(url=f'{SERVICE_URL}/load', method='POST')]))
