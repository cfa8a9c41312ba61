#!/bin/bash
# Stand-in for the old safe stopper: the PID in the file, then whatever `ps` shows.

pid_file=$VOICE_GUARD_PID_FILE
lock_file=$VOICE_GUARD_LOCK_FILE
agent="$VOICE_GUARD_AGENT_SCRIPT ${VOICE_GUARD_AGENT_MODE:-dev}"

end() {
    kill "$1" 2>/dev/null
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        ps -p "$1" >/dev/null || return
        sleep 0.2
    done
    kill -9 "$1" 2>/dev/null
}

if [ -f "$pid_file" ]; then
    pid=$(cat "$pid_file")
    if ps -p "$pid" >/dev/null 2>&1; then
        echo "Stopping the voice agent (PID $pid)"
        end "$pid"
    fi
fi

# shellcheck disable=SC2009
for pid in $(ps aux | grep -F -- "$agent" | grep -v grep | awk '{print $2}'); do
    echo "Stopping another voice agent (PID $pid)"
    end "$pid"
done

rm -f "$pid_file" "$lock_file"
echo "Voice agent stopped"
exit 0
