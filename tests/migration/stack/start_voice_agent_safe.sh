#!/bin/bash
# A stand-in for the head of an old safe starter. It is read by tests, never run.
SCRIPT_DIR="$(cd "$(dirname "${BASH_SOURCE[0]}")" >/dev/null 2>&1 && pwd)"
PROJECT_DIR="/srv/voice/my agents"
PID_FILE="/tmp/letta_voice_agent.pid"
LOCK_FILE=/tmp/letta_voice_agent.lock
LOG_FILE=$SCRIPT_DIR/logs/voice_agent.log
ENV_FILE="$HOME/keys.env"

"$SCRIPT_DIR/check_agent_running.sh" || exit 1
nohup "$VENV_DIR/bin/python" "$LETTA_VOICE_AGENT_EXE" dev > "$LOG_FILE" 2>&1 &
