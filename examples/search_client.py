"""A client of `clipglot serve`.

Run it as: python search_client.py "красная луна" [http://127.0.0.1:8000]
"""

import json
import sys
from urllib.parse import urlencode
from urllib.request import Request, urlopen


def search(query, url="http://127.0.0.1:8000", token=None, **options):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with urlopen(Request(f"{url}/search?{urlencode({'q': query, **options})}", headers=headers)) as answer:
        return json.load(answer)["hits"]


for hit in search(*sys.argv[1:], limit=3):
    print(f"{hit['score']:.3f}  {hit['key']}")
