#!/bin/bash
# A stand-in for the head of an old restart. It is read by tests, never run.
PROJECT_DIR="/srv/voice/my agents"
PRICE='5$ a call'
PYTHON=python3

./livekit-cli create-token --room test-room > token.txt
