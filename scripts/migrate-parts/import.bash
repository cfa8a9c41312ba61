#!/bin/bash
# Writes a voice-system.toml from what can be read out of the original scripts.
# Part of scripts/migrate, which sources it.
# shellcheck disable=SC2154  # dir and dry_run are scripts/migrate's

# Settings that were found: what they are, and where ("start_voice_system.sh:12").
declare -A VALUE=() FROM=()
# What could not be translated, one line for a person each.
declare -a NOT_TRANSLATED=()
# Commands that the originals start in the background, by the part that they are:
# words separated by line breaks.
declare -A COMMAND=() FOLDER=() ENVIRONMENT=()
# The file that is being written.
TOML=

# role_of NAME SCRIPT: sets ROLE, the setting that a variable of this name holds.
role_of() {
    ROLE=
    case ${1^^} in
        PROJECT_DIR | PROJECT_ROOT | PROJECT_PATH | AGENT_DIR | VOICE_AGENT_DIR) ROLE=project ;;
        SCRIPT_DIR | BASE_DIR | DIR | HERE) ROLE=own_folder ;;
        VENV_DIR | VENV | VENV_PATH) ROLE=venv ;;
        PYTHON | PYTHON_BIN | PYTHON_EXE | PYTHON_CMD) ROLE=python ;;
        ENV_FILE | ENVFILE | DOTENV | DOTENV_FILE) ROLE=env_file ;;
        LETTA_VOICE_AGENT_EXE | AGENT_SCRIPT | VOICE_AGENT_SCRIPT | AGENT_FILE | AGENT_EXE) ROLE=script ;;
        AGENT_MODE | VOICE_AGENT_MODE) ROLE=mode ;;
        PID_FILE | PIDFILE | AGENT_PID_FILE | VOICE_AGENT_PID_FILE) ROLE=pid_file ;;
        LOCK_FILE | LOCKFILE | AGENT_LOCK_FILE | VOICE_AGENT_LOCK_FILE) ROLE=lock_file ;;
        AGENT_LOG | AGENT_LOG_FILE | VOICE_AGENT_LOG | VOICE_AGENT_LOG_FILE) ROLE=log ;;
        # In the other scripts it may be the log of something else.
        LOG_FILE | LOGFILE) [[ $2 == *_voice_agent_safe.sh ]] && ROLE=log ;;
        LOG_DIR | LOGDIR | LOGS_DIR) ROLE=log_dir ;;
        LIVEKIT_DIR | LIVEKIT_HOME | LIVEKIT_PATH) ROLE=livekit_dir ;;
        LIVEKIT_PORT) ROLE=livekit_port ;;
        LETTA_PORT | LETTA_SERVER_PORT) ROLE=letta_port ;;
        LETTA_URL | LETTA_SERVER_URL | LETTA_BASE_URL) ROLE=letta_url ;;
        LETTA_SCRIPT | LETTA_START_SCRIPT | START_LETTA_SCRIPT | LETTA_SERVER_SCRIPT | LETTA_SERVER_EXE | LETTA_EXE) ROLE=letta_script ;;
        CORS_PORT | CORS_PROXY_PORT | PROXY_PORT) ROLE=cors_port ;;
        DEMO_PORT | DEMO_SERVER_PORT | WEB_PORT | HTTP_PORT) ROLE=demo_port ;;
        DEMO_PORT_FALLBACK | DEMO_FALLBACK_PORT | FALLBACK_PORT | WEB_FALLBACK_PORT) ROLE=demo_fallback_port ;;
    esac
    return 0
}

is_known_name() {
    role_of "$1" "$script"
    [[ -n $ROLE ]]
}

forget_assignments() {
    ASSIGNED_NAME=() ASSIGNED_VALUE=() ASSIGNED_LINE=() ASSIGNED_SCRIPT=() ASSIGNED_TEXT=()
    ASSIGNED_WHY_NOT=() ASSIGNED_OVERRIDE=()
}

not_translated() { NOT_TRANSLATED+=("$1"); }

# ---- Reading.

import() {
    local target=$dir/voice-system.toml name file script
    local -i scripts=0
    [[ ! -e $target && ! -L $target ]] ||
        refuse "$(shown "$target") is there already; it is never overwritten (rename it to import again)"
    # The system start knows most, so its word counts first.
    for name in start_voice_system start_voice_agent_safe restart_voice_system stop_voice_system check_agent_running stop_voice_agent_safe; do
        script=$name.sh
        for file in "$dir/$script" "$dir/$script.orig"; do
            look "$file" "$name"
            [[ $KIND == original ]] || continue
            scripts+=1
            forget_assignments
            read_assignments "$file" "$script"
            take_assignments
            take_lines "$file"
            break
        done
    done
    ((scripts > 0)) || refuse "none of the original scripts is in $(shown "$dir"), nor kept as NAME.sh.orig"
    find_base
    write_toml
    if [[ -n $dry_run ]]; then
        printf '%s' "$TOML"
        return
    fi
    local new=$dir/.voice-system.toml.migrating
    [[ -L $new || -f $new || ! -e $new ]] || refuse "$(shown "$new") is in the way"
    rm -f -- "$new"
    (set -o noclobber && printf '%s' "$TOML" >"$new") || refuse "cannot write in $(shown "$dir")"
    # Not renamed: a file that has appeared meanwhile stays. It appears whole.
    ln -T -- "$new" "$target" 2>/dev/null || mv -n -T -- "$new" "$target"
    if [[ -e $new && ! $new -ef $target ]]; then
        rm -f -- "$new"
        refuse "cannot make $(shown "$target"), or it has just appeared"
    fi
    rm -f -- "$new"
    say "$(shown "$target") is written from $scripts of the original scripts."
    local entry
    ((${#NOT_TRANSLATED[@]} == 0)) || say "Look at what could not be translated (also at the end of the file):"
    for entry in "${NOT_TRANSLATED[@]}"; do say "  $entry"; done
}

# take_assignments: what read_assignments has found in one script.
take_assignments() {
    local at name value where
    for at in "${!ASSIGNED_NAME[@]}"; do
        name=${ASSIGNED_NAME[at]} value=${ASSIGNED_VALUE[at]}
        where=${ASSIGNED_SCRIPT[at]}:${ASSIGNED_LINE[at]}
        role_of "$name" "$script"
        if [[ -z $ROLE ]]; then
            # Colours and the like: nobody misses them.
            [[ $value == *'\033['* || $value == *'\e['* || ${ASSIGNED_TEXT[at]} == *'\033['* || ${ASSIGNED_TEXT[at]} == *'\e['* ]] ||
                not_translated "$where  ${ASSIGNED_TEXT[at]}: no setting of this name${ASSIGNED_WHY_NOT[at]:+ (${ASSIGNED_WHY_NOT[at]})}"
        elif [[ -n ${ASSIGNED_WHY_NOT[at]} ]]; then
            not_translated "$where  ${ASSIGNED_TEXT[at]#"${ASSIGNED_TEXT[at]%%[![:space:]]*}"}: ${ASSIGNED_WHY_NOT[at]}"
        elif [[ $ROLE == own_folder ]]; then
            :
        elif [[ ! -v VALUE[$ROLE] || ${FROM[$ROLE]} == "$script:"* ]]; then
            # Within one script the last word counts.
            VALUE[$ROLE]=$value
            FROM[$ROLE]="$where $name"
            [[ -z ${ASSIGNED_OVERRIDE[at]} ]] ||
                not_translated "$where  ${ASSIGNED_TEXT[at]}: ${ASSIGNED_OVERRIDE[at]} from the environment came first; only the default is taken"
        elif [[ ${VALUE[$ROLE]} != "$value" ]]; then
            not_translated "$where  ${ASSIGNED_TEXT[at]}: differs from ${FROM[$ROLE]}, which is taken"
        fi
    done
}

declare -r COMPANION_LOGS='(livekit|letta_server|cors_proxy|demo_server|voice_agent)\.log'

# take_lines FILE: the commands by which a script starts the parts of the system.
take_lines() {
    local file=$1 line last_folder='' part
    local -i number=0
    while IFS= read -r line; do
        number+=1
        line=${line%$'\r'}
        [[ ! $line =~ ^[[:space:]]*(\#|$) ]] || continue
        if [[ $line =~ (^|[^[:alnum:]_])pg_isready([^[:alnum:]_]|$) && ! -v FROM[postgresql] ]]; then
            FROM[postgresql]="$script:$number"
        fi
        if [[ ! -v VALUE[script_seen] ]] && agent_in_line "$line"; then
            VALUE[script_seen]=$AGENT_SCRIPT VALUE[mode_seen]=$AGENT_MODE
            FROM[script_seen]="$script:$number" FROM[mode_seen]="$script:$number"
        fi
        if [[ $line =~ \>[[:space:]]*([\"\']?[^][:space:]\"\'\<\>\;\|\&\(\)[]*${COMPANION_LOGS}[\"\']?) ]]; then
            part=${BASH_REMATCH[2]}
            parse_word "${BASH_REMATCH[1]}"
            # Emptying a log is no start.
            [[ ! $line =~ ^[[:space:]]*(:|true|echo|printf)?[[:space:]]*\> ]] || continue
            if [[ -z $WHY_NOT && ! -v VALUE[${part}_log] ]]; then
                VALUE[${part}_log]=$WORD FROM[${part}_log]="$script:$number"
            fi
            if [[ ! -v COMMAND[$part] && $part != voice_agent ]]; then
                take_command "$line" "$part" "$last_folder"
            fi
        elif [[ $script == *_system.sh && $line =~ (^|[^\&\>])\&[[:space:]]*(\)|\#.*)?$ && ! $line =~ $NAMES ]] && ! agent_in_line "$line"; then
            not_translated "$script:$number  ${line#"${line%%[![:space:]]*}"}: started in the background; write a [[companion]] for it"
        fi
        if [[ $line =~ ^[[:space:]]*cd[[:space:]]+(--[[:space:]]+)?(.*)$ ]]; then
            parse_word "${BASH_REMATCH[2]}"
            last_folder=$WORD
            [[ -z $WHY_NOT ]] || last_folder=
        fi
        if [[ $script == restart_* && $line =~ (test-room|test-simple\.html|create-token|generate.*token) && ! $line =~ ^[[:space:]]*(echo|printf) ]]; then
            not_translated "$script:$number  ${line#"${line%%[![:space:]]*}"}: a command of its own; write a [[step]] with when = \"restart\" for it"
        fi
    done <"$file"
}

# take_command LINE PART FOLDER: the words of the command that LINE starts.
take_command() {
    local rest=$1 part=$2 folder=$3 words='' environment=''
    rest=${rest#"${rest%%[![:space:]\(]*}"}
    if [[ $rest =~ ^cd[[:space:]]+(--[[:space:]]+)?(.*)$ ]]; then
        parse_word "${BASH_REMATCH[2]}"
        folder=$WORD
        [[ -z $WHY_NOT && $REST =~ ^[[:space:]]*(\&\&|\;)[[:space:]]*(.*)$ ]] || return 0
        rest=${BASH_REMATCH[2]}
    fi
    while :; do
        rest=${rest#"${rest%%[![:space:]]*}"}
        [[ -n $rest && ! $rest =~ ^([0-9]*[\<\>]|\&|\||\;|\)|\#) ]] || break
        parse_word "$rest"
        if [[ -n $WHY_NOT || -z $WORD$REST ]]; then
            not_translated "$script:$number  ${1#"${1%%[![:space:]]*}"}: ${WHY_NOT:-not understood}"
            return
        fi
        rest=$REST
        case $words,$WORD in ,nohup | ,setsid | ,exec | ,env) continue ;; esac
        if [[ -z $words && $WORD =~ ^([A-Za-z_][A-Za-z0-9_]*=) ]]; then
            environment+=${environment:+$'\n'}$WORD
        else
            words+=${words:+$'\n'}$WORD
        fi
    done
    [[ -n $words ]] || return 0
    COMMAND[$part]=$words FOLDER[$part]=$folder ENVIRONMENT[$part]=$environment
    FROM[command_$part]="$script:$number"
}

# find_base: sets BASE, the folder from which the originals' paths are taken.
find_base() {
    BASE=$dir
    [[ -v VALUE[project] ]] || return 0
    in_environment "${VALUE[project]}"
    [[ $IN_ENVIRONMENT -ef $dir ]] && BASE=${VALUE[project]} && return
    if [[ -d $IN_ENVIRONMENT ]]; then
        not_translated "${FROM[project]}: the project folder is $IN_ENVIRONMENT, not the scripts' folder. This file is looked for in the project folder: move it there, and set VOICE_GUARD_PROJECT_DIR where the scripts are called"
    else
        # The scripts have come from somewhere else, with their project around them.
        not_translated "${FROM[project]}: $IN_ENVIRONMENT is not there; its paths are taken from this folder"
        BASE=${VALUE[project]}
    fi
}

# ---- Writing.

# add LINE COMMENT
add() {
    local line
    printf -v line '%-52s # %s\n' "$1" "$2"
    TOML+=$line
}

# Where a line comes from that no assignment and no command gives.
declare -r AS_ALWAYS='as all the original scripts have it'
declare -r NEW='not in the original scripts'

# from SETTING: where a setting comes from.
from() { printf '%s' "${FROM[$1]:-$AS_ALWAYS}"; }

# quoted VALUE: sets QUOTED, a TOML string in which variables of the environment
# are written $NAME; fails if it holds what such a string cannot.
quoted() {
    local value=$1 literal=$1 name
    while [[ $literal =~ $FROM_ENV([A-Za-z_][A-Za-z0-9_]*)$END_ENV ]]; do
        literal=${literal/"${BASH_REMATCH[0]}"/}
    done
    # shellcheck disable=SC2088  # a tilde that the script meant literally
    [[ $literal != *\$* && $value != '~'* ]] || return 1
    [[ $value != *[$'\x80'-$'\xff']* ]] || iconv -f UTF-8 -t UTF-8 <<<"$value" >/dev/null 2>&1 || return 1
    value=${value//\\/\\\\}
    value=${value//\"/\\\"}
    value=${value//$'\t'/\\t}
    while [[ $value =~ $FROM_ENV([A-Za-z_][A-Za-z0-9_]*)$END_ENV ]]; do
        name=${BASH_REMATCH[1]}
        value=${value/"${BASH_REMATCH[0]}"/"\${$name}"}
    done
    [[ ! $value =~ [[:cntrl:]] ]] || return 1
    QUOTED="\"$value\""
}

# is_unset_in VALUE: does it need a variable that this environment has not?
# Sets UNSET, its name.
is_unset_in() {
    local rest=$1
    while [[ $rest =~ $FROM_ENV([A-Za-z_][A-Za-z0-9_]*)$END_ENV ]]; do
        UNSET=${BASH_REMATCH[1]}
        [[ -v $UNSET ]] || return 0
        rest=${rest/"${BASH_REMATCH[0]}"/}
    done
    return 1
}

# in_project PATH: sets IN_PROJECT, PATH seen from the project folder where it is inside.
in_project() {
    IN_PROJECT=$1
    local base
    for base in "$BASE" "$dir"; do
        [[ $IN_PROJECT != "$base" ]] || IN_PROJECT=.
        IN_PROJECT=${IN_PROJECT#"$base"/}
    done
}

# in_place PATH: sets IN_PLACE, where PATH is on this machine.
in_place() {
    in_project "$1"
    in_environment "$IN_PROJECT"
    IN_PLACE=$IN_ENVIRONMENT
    [[ $IN_PLACE == /* ]] || IN_PLACE=$dir/$IN_PLACE
}

# add_string KEY VALUE COMMENT [WRAP]: WRAP is "[%s]" for a list.
add_string() {
    if is_unset_in "$2"; then
        not_translated "$3: $1 needs $UNSET, which is not set here; the programs would stop at such a line"
    elif quoted "$2"; then
        # shellcheck disable=SC2059  # the format is ours
        add "$1 = $(printf "${4:-%s}" "$QUOTED")" "$3"
    else
        not_translated "$3: $1 = $2 holds what the file cannot say (a literal \$ or ~, or no UTF-8)"
    fi
}

add_path() { # KEY PATH COMMENT [WRAP]
    in_project "$2"
    add_string "$1" "$IN_PROJECT" "$3" "${4-}"
}

# add_setting KEY ROLE [WRAP]: a path, if the scripts give one.
add_setting() {
    [[ ! -v VALUE[$2] ]] || add_path "$1" "${VALUE[$2]}" "${FROM[$2]}" "${3-}"
}

# port ROLE DEFAULT: sets PORT.
port() {
    PORT=$2
    [[ -v VALUE[$1] ]] || return 0
    if [[ ${VALUE[$1]} =~ ^[0-9]+$ ]]; then
        PORT=${VALUE[$1]}
    else
        not_translated "${FROM[$1]}: ${VALUE[$1]} is no port; $2 is taken"
    fi
}

# add_command PART DEFAULT_WORD...: the command that the scripts start it by.
add_command() {
    local part=$1 line='' word
    local -a words
    shift
    words=("$@")
    [[ ! -v COMMAND[$part] ]] || mapfile -t words <<<"${COMMAND[$part]}"
    for word in "${words[@]}"; do
        in_project "$word"
        [[ $word != "$IN_PROJECT" || ${words[0]} != "$word" ]] || IN_PROJECT=$word
        quoted "$IN_PROJECT" || {
            not_translated "${FROM[command_$part]-$script}: $word holds what the file cannot say"
            continue
        }
        line+=${line:+, }$QUOTED
    done
    add "command = [$line]" "$(from "command_$part")"
    line=
    [[ -n ${ENVIRONMENT[$part]-} ]] || return 0
    while IFS= read -r word; do
        quoted "${word#*=}" || {
            not_translated "${FROM[command_$part]}: $word holds what the file cannot say"
            continue
        }
        line+="${line:+, }${word%%=*} = $QUOTED"
    done <<<"${ENVIRONMENT[$part]}"
    add "env = { $line }" "$(from "command_$part")"
}

add_log() { # PART DEFAULT_FILE
    if [[ -v VALUE[$1_log] ]]; then
        add_path log "${VALUE[$1_log]}" "${FROM[$1_log]}"
    elif [[ -v VALUE[log_dir] ]]; then
        add_path log "${VALUE[log_dir]}/$2" "${FROM[log_dir]}"
    else
        add_path log "/tmp/$2" "$AS_ALWAYS"
    fi
}

write_toml() {
    local needs='' letta='' livekit='' entry
    [[ ! -v COMMAND[letta_server] && ! -v VALUE[letta_script] ]] || letta=yes
    [[ ! -v COMMAND[livekit] && ! -v VALUE[livekit_dir] ]] || livekit=yes
    [[ -z $livekit ]] || needs='"livekit"'
    [[ -z $letta ]] || needs+="${needs:+, }\"letta\""
    TOML="# The voice system, as the original scripts in this folder describe it.
# Written by scripts/migrate import, which has run nothing of them; each line
# says where it comes from. What could not be translated is at the end.

"
    write_agent "$needs"
    [[ ! -v FROM[postgresql] ]] || write_postgresql
    if [[ -n $letta ]]; then
        write_letta
    elif [[ -v VALUE[letta_port] || -v VALUE[letta_url] ]]; then
        not_translated "${FROM[letta_url]-${FROM[letta_port]-}}: no line starts the Letta server in a way that can be read; write a [[companion]] for it"
    fi
    [[ -z $livekit ]] || write_livekit
    [[ ! -v COMMAND[cors_proxy] ]] || write_cors_proxy
    [[ ! -v COMMAND[demo_server] ]] || write_demo_server
    if ((${#NOT_TRANSLATED[@]} > 0)); then
        TOML+=$'\n# Not translated; look at each, then take it out of this list:\n'
        TOML+=$(for entry in "${NOT_TRANSLATED[@]}"; do printf '# - %s\n' "${entry//$'\n'/ }"; done |
            tr -d '\000-\010\013-\037\177' | iconv -c -f UTF-8 -t UTF-8)$'\n'
    fi
}

write_agent() { # NEEDS
    local needs=$1 agent=${VALUE[script]-} role
    add '[agent]' 'the voice agent'
    if [[ $agent == *.py && $agent != *' '* ]]; then
        add_path script "$agent" "${FROM[script]}"
    elif [[ -n $agent ]]; then
        # A whole command: PYTHON SCRIPT MODE
        if [[ $agent =~ ^(([^ ]*/)?(python[0-9.]*)\ +)?(-[uBO]\ +)*([^ ]+\.py)(\ +([a-z]+))?$ ]]; then
            local -a part=("${BASH_REMATCH[@]}")
            add_path script "${part[5]}" "${FROM[script]}"
            [[ -z ${part[7]} ]] || VALUE[mode]=${part[7]} FROM[mode]=${FROM[script]}
            [[ -z ${part[2]} ]] || VALUE[python]=${part[2]}${part[3]} FROM[python]=${FROM[script]}
        elif [[ ${agent##*/} =~ ^python[0-9.]*$ && $agent == */* ]]; then
            VALUE[python]=$agent FROM[python]=${FROM[script]}
        else
            not_translated "${FROM[script]}: \"$agent\" is neither a .py file nor a Python with one"
        fi
    fi
    if [[ $TOML != *$'\nscript = '* && -v VALUE[script_seen] ]]; then
        add_path script "${VALUE[script_seen]}" "${FROM[script_seen]}"
    fi
    for role in mode mode_seen; do
        [[ -v VALUE[$role] && $TOML != *$'\nmode = '* ]] || continue
        add_string mode "${VALUE[$role]}" "${FROM[$role]}"
    done
    if [[ -v VALUE[python] && ${VALUE[python]} != */* ]]; then
        not_translated "${FROM[python]}: ${VALUE[python]} is no path; without one, the programs take the project's virtual environment, then python3 in PATH"
        unset 'VALUE[python]'
    fi
    if [[ -v VALUE[venv] && ! -v VALUE[python] ]]; then
        VALUE[python]=${VALUE[venv]}/bin/python3 FROM[python]=${FROM[venv]}
        in_place "${VALUE[python]}"
        [[ -x $IN_PLACE ]] || not_translated "${FROM[venv]}: there is no $IN_PLACE here (yet)"
    fi
    add_setting python python
    add_setting env_files env_file '[%s]'
    if [[ -v VALUE[env_file] ]]; then
        in_place "${VALUE[env_file]}"
        [[ -f $IN_PLACE ]] || not_translated "${FROM[env_file]}: there is no $IN_PLACE here (yet), and the programs need it"
    fi
    add_setting pid_file pid_file
    add_setting lock_file lock_file
    if [[ -v VALUE[log] ]]; then
        add_setting log log
    elif [[ -v VALUE[voice_agent_log] ]]; then
        add_setting log voice_agent_log
    fi
    [[ -z $needs ]] || add "needs = [$needs]" 'as the original scripts start them before it'
}

write_postgresql() {
    TOML+=$'\n'
    add '[[companion]]' "${FROM[postgresql]}"
    add 'name = "postgresql"' "${FROM[postgresql]}"
    add 'check = ["pg_isready", "-q"]' "${FROM[postgresql]}"
    add 'start = ["sudo", "-n", "service", "postgresql", "start"]' 'never asks for a password'
    add 'remedy = "sudo service postgresql start"' "$AS_ALWAYS"
    add 'deadline_seconds = 30' "$NEW"
}

write_letta() {
    local where=${FROM[command_letta_server]-${FROM[letta_script]-}} url
    port letta_port 8283
    url=${VALUE[letta_url]-http://localhost:$PORT/}
    TOML+=$'\n'
    add '[[companion]]' "$where"
    add 'name = "letta"' "$where"
    [[ -v FROM[command_letta_server] ]] || FROM[command_letta_server]=${FROM[letta_script]}
    add_command letta_server "${VALUE[letta_script]-}"
    [[ -z ${FOLDER[letta_server]-} ]] || add_path folder "${FOLDER[letta_server]}" "$where"
    add_log letta_server letta_server.log
    add_string ready "$url" "${FROM[letta_url]-$(from letta_port)}" '{ http = %s }'
    add 'deadline_seconds = 60' "$AS_ALWAYS"
    [[ ! -v FROM[postgresql] ]] || add 'needs = ["postgresql"]' "$AS_ALWAYS"
}

write_livekit() {
    local where=${FROM[livekit_dir]-${FROM[command_livekit]-}}
    TOML+=$'\n'
    port livekit_port 7880
    add '[[companion]]' "$where"
    add 'name = "livekit"' "$where"
    add_command livekit ./livekit-server --dev --bind 0.0.0.0
    if [[ -v VALUE[livekit_dir] ]]; then
        add_setting folder livekit_dir
    elif [[ -n ${FOLDER[livekit]-} ]]; then
        add_path folder "${FOLDER[livekit]}" "$where"
    fi
    add_log livekit livekit.log
    add "ready = { port = $PORT }" "$(from livekit_port)"
    add 'deadline_seconds = 20' "$NEW"
    add 'on_start = "fresh"' "$AS_ALWAYS"
    add 'clean = { folders = ["/tmp/livekit"], log = true }' "$AS_ALWAYS"
    add 'grace_seconds = 2' "$AS_ALWAYS"
    add "url = \"http://localhost:$PORT/\"" "$(from livekit_port)"
}

write_cors_proxy() {
    local where=${FROM[command_cors_proxy]}
    TOML+=$'\n'
    port cors_port 9000
    add '[[companion]]' "$where"
    add 'name = "cors-proxy"' "$where"
    add_command cors_proxy
    add_log cors_proxy cors_proxy.log
    add "ready = { port = $PORT }" "$(from cors_port)"
    add 'on_start = "fresh"' "$AS_ALWAYS"
    add 'on_failure = "warn"' "$NEW"
}

write_demo_server() {
    local where=${FROM[command_demo_server]} first fallback command
    TOML+=$'\n'
    port demo_port 8888
    first=$PORT
    port demo_fallback_port 8899
    fallback=$PORT
    command=${COMMAND[demo_server]}$'\n'
    command=${command/$'\n'"$first"$'\n'/$'\n'"{port}"$'\n'}
    COMMAND[demo_server]=${command%$'\n'}
    add '[[companion]]' "$where"
    add 'name = "demo"' "$where"
    add_command demo_server
    [[ -z ${FOLDER[demo_server]-} ]] || add_path folder "${FOLDER[demo_server]}" "$where"
    add_log demo_server demo_server.log
    add "ports = [$first, $fallback]" "$(from demo_port)"
    add 'ready = { port = "{port}" }' "$(from demo_port)"
    add 'on_start = "fresh"' "$AS_ALWAYS"
    add 'on_failure = "warn"' "$NEW"
    add 'url = "http://localhost:{port}/"' "$(from demo_port)"
}
