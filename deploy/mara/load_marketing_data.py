#!/usr/bin/env python3
"""Starts a load in marketing-data-service and waits until it ends.

Run it as a script, by hand or from cron. Mara versions without HttpRequest call
its function:

    from mara_pipelines.commands.python import RunFunction
    Task(id='load', description='…', commands=[RunFunction(load_marketing_data)])

    MARKETING_DATA_SERVICE_URL         http://127.0.0.1:8000 when not set
    MARKETING_DATA_SERVICE_TOKEN_FILE  a file with the token, if the service has one

Needs only Python's standard library, and connects without a proxy.
"""

import http.client
import json
import os
import pathlib
import sys
import urllib.parse

# Connection timeout, in seconds. The load has no timeout here, because the service limits it.
CONNECT_TIMEOUT = 10


def post(url: str, headers: dict) -> tuple:
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
        connection.request('POST', parts.path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read().decode('utf-8', 'replace')
    finally:
        connection.close()


def load_marketing_data() -> bool:
    """Returns whether the load succeeded. Prints the loaded tables, or the failure and its cause."""
    url = os.environ.get('MARKETING_DATA_SERVICE_URL', 'http://127.0.0.1:8000')
    token_file = os.environ.get('MARKETING_DATA_SERVICE_TOKEN_FILE')
    headers = {}
    if token_file:
        token = pathlib.Path(token_file).read_text().rstrip('\r\n')
        if not token.isascii() or not token.isprintable():
            # The error of http.client would contain the token.
            print(f'Cannot use the token in {token_file}: it has characters that a header '
                  'cannot hold. Write one line of ASCII.', file=sys.stderr)
            return False
        headers['Authorization'] = f'Bearer {token}'
    try:
        status, text = post(f'{url.rstrip("/")}/load', headers)
    except (OSError, http.client.HTTPException, ValueError) as error:
        print(f'Cannot reach marketing-data-service at {url}: {error}', file=sys.stderr)
        return False
    try:
        answer = json.loads(text)
    except ValueError:
        answer = {}
    if 200 <= status < 300 and answer.get('status') == 'success':
        for table in answer['results']['results']:
            print(f"{table['table']}: {table['records_loaded']} rows ({table['mode']})")
        return True
    # A failure event has "error", a problem document (RFC 9457) has "detail".
    message = answer.get('error') or answer.get('detail') or text[:500]
    print(f'The load failed ({status}): {message}', file=sys.stderr)
    return False


if __name__ == '__main__':
    sys.exit(0 if load_marketing_data() else 1)
