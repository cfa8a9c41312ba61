#!/bin/bash
# A stand-in for the head of an old system start, and for the lines by which it
# starts its parts. It is read by tests, never run.
set -e

PROJECT_DIR="/srv/voice/my agents"
VENV_DIR="/srv/voice/.venv"
export ENV_FILE="$PROJECT_DIR/.env"   # keys
LIVEKIT_DIR="${PROJECT_DIR}/livekit"; LOG_DIR=/tmp
LETTA_VOICE_AGENT_EXE='letta_voice_agent_optimized.py'
LIVEKIT_PORT=7880 DEMO_PORT=8888
LETTA_PORT=${LETTA_PORT:-8283}
: "${CORS_PORT:=9000}"
RED='\033[0;31m'
NC='\033[0m'
MAX_WAIT=60
STARTED_AT=$(date +%s)
PIDS=()
BACKUP_DIR=~/backups

if [ ! -f "$ENV_FILE" ]; then
    echo "ERROR: $ENV_FILE is missing"
    exit 1
fi
set -a; source "$ENV_FILE"; set +a

if ! pg_isready -q; then
    sudo service postgresql start
fi

start_letta() {
    LOG_DIR=/var/log/letta
    nohup "$HOME/bin/start_letta.sh" > "$LOG_DIR/letta_server.log" 2>&1 &
}

cd "$LIVEKIT_DIR"
: > /tmp/livekit.log
nohup ./livekit-server --dev --bind 0.0.0.0 > "$LOG_DIR/livekit.log" 2>&1 &

"$PROJECT_DIR/start_voice_agent_safe.sh" > /tmp/voice_agent_start.log 2>&1

cd "$PROJECT_DIR"
nohup python3 room_health_monitor.py > /tmp/room_monitor.log 2>&1 &
PORT_FILE=/tmp/port nohup "$VENV_DIR/bin/python3" cors_proxy_server.py > "$LOG_DIR/cors_proxy.log" 2>&1 &
(cd "$LIVEKIT_DIR" && nohup python3 -m http.server $DEMO_PORT > "$LOG_DIR/demo_server.log" 2>&1 &)

cat <<END
ENV_FILE=/not/this/one
END
