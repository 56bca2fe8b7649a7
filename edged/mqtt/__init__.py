"""MQTT 5 and 3.1.1 as a client of few words: what the request path needs of it, and no more.

``codec`` and ``control`` turn packets into bytes and back, ``properties`` is their table;
``receiver`` cuts what was received into packets; ``in_flight`` numbers and repeats what was sent;
``keep_alive`` says when to ping. All of these are pure. ``stream`` and ``websocket`` open and move
bytes, and ``connection`` puts the pieces around one socket.
"""
