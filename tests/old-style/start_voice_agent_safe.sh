#!/bin/bash
# Stand-in for the old safe starter: check, then lock, then start. Not atomic.

pid_file=$VOICE_GUARD_PID_FILE
lock_file=$VOICE_GUARD_LOCK_FILE

if ! "$(dirname "$0")/check_agent_running.sh"; then
    echo "ERROR: Already running or locked"
    exit 1
fi

if [ -n "$OLD_STYLE_PAUSE_BEFORE_LOCK" ]; then
    read -r _ <"$OLD_STYLE_PAUSE_BEFORE_LOCK"
fi

echo $$ >"$lock_file"
trap 'rm -f "$lock_file"' EXIT

if [ -n "$OLD_STYLE_PAUSE_BEFORE_AGENT" ]; then
    read -r _ <"$OLD_STYLE_PAUSE_BEFORE_AGENT"
fi

if [ -n "$VOICE_GUARD_ENV_FILE" ]; then
    if [ ! -f "$VOICE_GUARD_ENV_FILE" ]; then
        echo "ERROR: $VOICE_GUARD_ENV_FILE is missing"
        exit 1
    fi
    # shellcheck disable=SC1090
    source "$VOICE_GUARD_ENV_FILE"
fi

cd "$VOICE_GUARD_PROJECT_DIR" || exit 1
nohup "$VOICE_GUARD_PYTHON" "$VOICE_GUARD_AGENT_SCRIPT" "${VOICE_GUARD_AGENT_MODE:-dev}" \
    </dev/null >"$VOICE_GUARD_LOG_FILE" 2>&1 &
agent=$!
echo "$agent" >"$pid_file"

sleep "${OLD_STYLE_VERIFY_SECONDS:-3}"
if ps -p "$agent" >/dev/null; then
    echo "Voice agent started (PID $agent)"
    exit 0
fi
echo "ERROR: the voice agent died"
rm -f "$pid_file"
exit 1
