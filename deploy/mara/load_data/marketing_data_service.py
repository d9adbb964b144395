#!/usr/bin/env python3
"""Starts a load in marketing-data-service and waits until it ends.

The pipelines beside this file call the function `load`. As a script, by hand or
from cron, it takes the group of tables to load, or loads all tables:

    python3 marketing_data_service.py marketing

    MARKETING_DATA_SERVICE_URL         http://127.0.0.1:8000 when not set
    MARKETING_DATA_SERVICE_TOKEN_FILE  a file with the token, if the service has one

Needs only Python's standard library, and connects without a proxy.
"""

import http.client
import json
import os
import pathlib
import sys
import time
import urllib.parse

# Connection timeout, in seconds. The load has no timeout here, because the service limits it.
CONNECT_TIMEOUT = 10

# Seconds before the next request, when another load runs for longer than LOCK_TIMEOUT.
BUSY_DELAY = 5


def post(url: str, headers: dict, body: str) -> tuple:
    """Returns the status and the text of the answer.

    Uses `http.client`, because `urllib.request` has one timeout for connecting and waiting.
    """
    parts = urllib.parse.urlsplit(url)
    kinds = {'http': http.client.HTTPConnection, 'https': http.client.HTTPSConnection}
    if parts.scheme not in kinds or not parts.hostname:
        raise ValueError('it is not an http or https URL')
    connection = kinds[parts.scheme](parts.hostname, parts.port, timeout=CONNECT_TIMEOUT)
    try:
        connection.connect()
        connection.sock.settimeout(None)
        connection.request('POST', parts.path, body=body, headers=headers)
        response = connection.getresponse()
        return response.status, response.read().decode('utf-8', 'replace')
    finally:
        connection.close()


def load(group: str = None) -> bool:
    """Returns whether the load succeeded. Prints the loaded tables, and each failure with its cause."""
    url = os.environ.get('MARKETING_DATA_SERVICE_URL', 'http://127.0.0.1:8000')
    token_file = os.environ.get('MARKETING_DATA_SERVICE_TOKEN_FILE')
    headers = {'Content-Type': 'application/json'}
    if token_file:
        try:
            token = pathlib.Path(token_file).read_bytes().decode('latin-1').rstrip('\r\n')
        except OSError as error:
            print(f'Cannot read the token: {error}', file=sys.stderr)
            return False
        if not token.isascii() or not token.isprintable():
            # The error of http.client would contain the token.
            print(f'Cannot use the token in {token_file}: it has characters that a header '
                  'cannot hold. Write one line of ASCII.', file=sys.stderr)
            return False
        headers['Authorization'] = f'Bearer {token}'
    body = json.dumps({'group': group} if group else {})
    while True:
        try:
            status, text = post(f'{url.rstrip("/")}/load', headers, body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            print(f'Cannot reach marketing-data-service at {url}: {error}', file=sys.stderr)
            return False
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            answer = {}
        if answer.get('code') != 'busy':
            break
        # Mara starts both pipelines at the same time, and the service runs one load after the other.
        print(answer['detail'])
        time.sleep(BUSY_DELAY)
    # A success has "results", and a failure has "details". Both list the tables.
    tables = (answer.get('results') or answer.get('details') or {}).get('results', [])
    for table in tables:
        if table['status'] == 'success':
            print(f"{table['table']}: {table['records_loaded']:,} rows ({table['mode']})")
            for warning in table['warnings']:
                print(f"{table['table']}: {warning}")
    if 200 <= status < 300 and answer.get('status') == 'success':
        return True
    # Without tables, a failure event has "error" and a problem document (RFC 9457) has "detail".
    failures = [table['error'] for table in tables if table['status'] != 'success']
    for failure in failures or [answer.get('error') or answer.get('detail') or text[:500]]:
        print(f'The load failed ({status}): {failure}', file=sys.stderr)
    return False


if __name__ == '__main__':
    sys.exit(0 if load(*sys.argv[1:2]) else 1)
