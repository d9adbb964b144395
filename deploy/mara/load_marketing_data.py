#!/usr/bin/env python3
"""Asks marketing-data-service for a load and waits for its end.

For the transition: a script to run by hand or from cron, and a function for
Mara versions without HttpRequest:

    from mara_pipelines.commands.python import RunFunction
    Task(id='load', description='…', commands=[RunFunction(load_marketing_data)])

    MARKETING_DATA_SERVICE_URL         http://127.0.0.1:8000 when not set
    MARKETING_DATA_SERVICE_TOKEN_FILE  a file with the token, where there is one

Needs the package `requests`, which Mara brings.
"""

import os
import pathlib
import sys

import requests

# Seconds to connect. There is no limit on the load itself: the service has its own.
CONNECT_TIMEOUT = 10


def load_marketing_data() -> bool:
    """Returns whether the load succeeded; prints what was loaded, or what failed and why."""
    url = os.environ.get('MARKETING_DATA_SERVICE_URL', 'http://127.0.0.1:8000')
    token_file = os.environ.get('MARKETING_DATA_SERVICE_TOKEN_FILE')
    headers = {}
    if token_file:
        token = pathlib.Path(token_file).read_text().rstrip('\r\n')
        headers['Authorization'] = f'Bearer {token}'
    try:
        response = requests.post(f'{url}/load', headers=headers, timeout=(CONNECT_TIMEOUT, None))
    except requests.RequestException as error:
        print(f'Cannot reach marketing-data-service at {url}: {error}', file=sys.stderr)
        return False
    try:
        answer = response.json()
    except ValueError:
        answer = {}
    if response.ok and answer.get('status') == 'success':
        for table in answer['results']['results']:
            print(f"{table['table']}: {table['records_loaded']} rows ({table['mode']})")
        return True
    # A failure event has "error", a problem document (RFC 9457) has "detail".
    message = answer.get('error') or answer.get('detail') or response.text[:500]
    print(f'The load failed ({response.status_code}): {message}', file=sys.stderr)
    return False


if __name__ == '__main__':
    sys.exit(0 if load_marketing_data() else 1)
