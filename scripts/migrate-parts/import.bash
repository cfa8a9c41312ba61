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
# What is written of them.
declare -A PREPARED=() PREPARED_FOLDER=() PREPARED_ENVIRONMENT=()
# Parts that are started in a way that could not be read, and where.
declare -A NOT_READ=()
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

not_translated() {
    local text=${1//"$FROM_ENV"/\$\{}
    NOT_TRANSLATED+=("${text//"$END_ENV"/\}}")
}

# ---- Reading.

import() {
    local target=$dir/voice-system.toml name file script first
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
            ((scripts > 1)) || first=$file
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
    # Whoever may read the script may read this, whoever has called us.
    local mode=$((8#$(stat -L -c %a -- "$first") & 0644 | 0600))
    if ! write_new "$new" "$(printf %o "$mode")" "$first" "$TOML"; then
        rm -f -- "$new"
        refuse "cannot write in $(shown "$dir")"
    fi
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
    local line number at part log folder='' previous=''
    read_lines "$1"
    for at in "${!SCRIPT_LINE[@]}"; do
        line=${SCRIPT_LINE[at]} number=${SCRIPT_NUMBER[at]}
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
            log=$WORD
            [[ -z $WHY_NOT ]] || log=
            parse_command "$line" "$folder"
            # Emptying a log is no start.
            if [[ -n $COMMAND_WORDS$COMMAND_WHY_NOT ]]; then
                if [[ -n $log && ! -v VALUE[${part}_log] ]]; then
                    VALUE[${part}_log]=$log FROM[${part}_log]="$script:$number"
                fi
                [[ $part == voice_agent || -v COMMAND[$part] ]] || take_command "$part"
            fi
        elif [[ $script == *_system.sh && $line =~ (^|[^\&\>])\&[[:space:]]*(\)|\#.*)?$ && ! $line =~ $NAMES ]] && ! agent_in_line "$line"; then
            not_translated "$script:$number  ${line#"${line%%[![:space:]]*}"}: started in the background; write a [[companion]] for it"
        fi
        follow_folder "$line"
        if [[ $script == restart_* && $line =~ (test-room|test-simple\.html|create-token|generate.*token) && ! $line =~ ^[[:space:]]*(echo|printf) ]]; then
            not_translated "$script:$number  ${line#"${line%%[![:space:]]*}"}: a command of its own; write a [[step]] with when = \"restart\" for it"
        fi
    done
}

# take_command PART: what parse_command has found in take_lines' line.
take_command() {
    local part=$1
    if [[ -n $COMMAND_WHY_NOT ]]; then
        not_translated "$script:$number  ${line#"${line%%[![:space:]]*}"}: $COMMAND_WHY_NOT"
        [[ -v NOT_READ[$part] ]] || NOT_READ[$part]="$script:$number"
        return
    fi
    COMMAND[$part]=$COMMAND_WORDS FOLDER[$part]=$COMMAND_FOLDER ENVIRONMENT[$part]=$COMMAND_ENVIRONMENT
    FROM[command_$part]="$script:$number"
}

# follow_folder LINE: keeps take_lines' folder, in which the next line is run:
# empty (where the script is called, which should be the project folder), a path,
# or UNKNOWN.
follow_folder() {
    local line=$1 was=$folder
    if [[ $line =~ ^[[:space:]]*(cd|pushd)(([[:space:]]+(--|-[LP]))*)([[:space:]]+(.*))?$ ]]; then
        parse_word "${BASH_REMATCH[6]:-~}"
        # `cd x && command &` is a shell of its own.
        [[ ! $REST =~ ^[[:space:]]*\&\&.*[^\&\>]\&[[:space:]]*(\#.*)?$ ]] || return 0
        enter "$folder" "$previous"
        folder=$FOLDER_NOW previous=$was
    elif [[ $line =~ ^[[:space:]]*popd([[:space:]\;\&\>]|$) ]]; then
        folder=$previous previous=$UNKNOWN
    fi
}

# enter FOLDER PREVIOUS: sets FOLDER_NOW to where `cd WORD` leads from FOLDER.
enter() {
    local from=$1 part path=''
    local -a parts
    FOLDER_NOW=$UNKNOWN
    [[ -z $WHY_NOT ]] || return 0
    case $WORD in
        -) FOLDER_NOW=$2 ;;
        /* | "$FROM_ENV"*) path=$WORD ;;
        *) path=${from:+$from/}$WORD ;;
    esac
    [[ -n $path && $path != *"$UNKNOWN"* ]] || return 0
    IFS=/ read -r -a parts <<<"$path"
    [[ $path == /* ]] && FOLDER_NOW=/ || FOLDER_NOW=
    for part in "${parts[@]}"; do
        case $part in
            '' | .) ;;
            ..)
                # Above the folder where it is called, or a variable's.
                if [[ -z $FOLDER_NOW || $FOLDER_NOW == *"$END_ENV" ]]; then
                    FOLDER_NOW=$UNKNOWN
                    return
                fi
                case $FOLDER_NOW in
                    /*/*) FOLDER_NOW=${FOLDER_NOW%/*} ;;
                    /*) FOLDER_NOW=/ ;;
                    */*) FOLDER_NOW=${FOLDER_NOW%/*} ;;
                    *) FOLDER_NOW= ;;
                esac
                ;;
            *) [[ $FOLDER_NOW == '' || $FOLDER_NOW == */ ]] && FOLDER_NOW+=$part || FOLDER_NOW+=/$part ;;
        esac
    done
}

# What may follow a command on its line without being another one that matters.
# shellcheck disable=SC2016  # it is the script's text
declare -r COMMAND_ENDS='^[[:space:]]*(\)[[:space:]]*)?(&[[:space:]]*)?([)}][[:space:]]*)?((;[[:space:]]*)?(disown[^;&|]*|[A-Za-z_][A-Za-z0-9_]*=\$!|echo[[:space:]][^;&|]*)[[:space:]]*)*(;[[:space:]]*)?((fi|done|\})[[:space:]]*)?(#.*)?$'

# parse_command LINE FOLDER: the one command that LINE runs when it is run in FOLDER.
# Sets COMMAND_WORDS and COMMAND_ENVIRONMENT (a line each; no words: it only empties
# files), COMMAND_FOLDER, and COMMAND_WHY_NOT if it cannot be told or is not one.
parse_command() {
    local rest=$1 prefix='' raw
    COMMAND_WORDS='' COMMAND_ENVIRONMENT='' COMMAND_FOLDER=$2 COMMAND_WHY_NOT=''
    while [[ $rest =~ ^[[:space:]]*(\(|(\{|then|else|do)[[:space:]])(.*)$ ]]; do rest=${BASH_REMATCH[3]}; done
    while [[ $rest =~ ^[[:space:]]*cd([[:space:]]+(--|-[LP]))*[[:space:]]+(.*)$ ]]; do
        parse_word "${BASH_REMATCH[3]}"
        rest=$REST
        enter "$COMMAND_FOLDER" "$UNKNOWN"
        COMMAND_FOLDER=$FOLDER_NOW
        if [[ $rest =~ ^[[:space:]]*(\&\&|(\|\|[[:space:]]*(exit|return)([[:space:]]+[0-9]+)?[[:space:]]*)?\;)(.*)$ ]]; then
            rest=${BASH_REMATCH[5]}
        else
            COMMAND_WHY_NOT=${WHY_NOT:-several commands in one line}
            return
        fi
    done
    while :; do
        rest=${rest#"${rest%%[![:space:]]*}"}
        if [[ $rest =~ ^[0-9]*(\<\<|[\<\>]\() ]]; then
            COMMAND_WHY_NOT='it reads or writes what only a shell provides'
            return
        elif [[ $rest =~ ^(\&\>\>?|[0-9]*(\>\>|\>\||\>\&|\<\&|\<\>|\>|\<))[[:space:]]*(.*)$ ]]; then
            # Which file it is matters to its log only.
            if skip_word "${BASH_REMATCH[3]}"; then
                rest=$REST
                continue
            fi
            COMMAND_WHY_NOT='a string over several lines'
            return
        elif [[ -z $rest || $rest =~ ^(\&|\||\;|\)|\#) ]]; then
            # If it only empties a file, what comes next may be the start.
            only_empties || break
            [[ $rest =~ ^(\&\&|\;)(.*[^[:space:]].*)$ ]] || break
            rest=${BASH_REMATCH[2]} COMMAND_WORDS='' prefix=''
            continue
        fi
        if [[ -z $COMMAND_WORDS && $rest =~ ^\[ ]]; then WORD='['; else parse_word "$rest"; fi
        raw=${rest%"$REST"}
        if [[ -n $WHY_NOT || -z $raw ]]; then
            COMMAND_WHY_NOT=${WHY_NOT:-not understood}
            return
        elif [[ $raw == *\$* && $raw != *[\"\'\\]* && $WORD == *[[:space:]]* ]]; then
            COMMAND_WHY_NOT="$raw is split into several words"
            return
        fi
        rest=$REST
        if [[ -z $COMMAND_WORDS ]]; then
            case $WORD in
                nohup | setsid | exec | env | command)
                    prefix=$WORD
                    continue
                    ;;
                -*)
                    COMMAND_WHY_NOT="$prefix with options"
                    return
                    ;;
                source | . | test | \[ | \[\[ | if | elif | while | until | for | case | ! | time | eval | trap | wait | read | function)
                    COMMAND_WHY_NOT='a command of the shell, or several commands in one line'
                    return
                    ;;
                'fi' | 'done' | 'esac' | \}) return ;;
            esac
            if [[ $WORD =~ ^[A-Za-z_][A-Za-z0-9_]*= ]]; then
                COMMAND_ENVIRONMENT+=${COMMAND_ENVIRONMENT:+$'\n'}$WORD
                continue
            elif is_function "$WORD"; then
                COMMAND_WHY_NOT="$WORD is a function of the script"
                return
            fi
        fi
        COMMAND_WORDS+=${COMMAND_WORDS:+$'\n'}$WORD
    done
    if only_empties; then
        COMMAND_WORDS=
    elif [[ ! $rest =~ $COMMAND_ENDS ]]; then
        COMMAND_WHY_NOT='several commands in one line'
    elif [[ -z ${BASH_REMATCH[2]} ]]; then
        COMMAND_WHY_NOT='it is not started in the background'
    elif [[ $COMMAND_FOLDER == "$UNKNOWN" ]]; then
        COMMAND_WHY_NOT='the folder in which it is run is not known'
    fi
}

# Is what parse_command has read so far no program, or one that writes a line into a
# file at most?
only_empties() {
    case ${COMMAND_WORDS%%$'\n'*} in
        '' | : | true | echo | printf | cat | date | touch | truncate) ;;
        *) return 1 ;;
    esac
}

# is_function NAME: does the script that is being read define it?
is_function() {
    [[ $1 =~ ^[A-Za-z_][A-Za-z0-9_-]*$ ]] || return 1
    local each
    for each in "${SCRIPT_LINE[@]}"; do
        [[ ! $each =~ ^[[:space:]]*(function[[:space:]]+"$1"([[:space:]\(\{]|$)|"$1"[[:space:]]*\(\)) ]] || return 0
    done
    return 1
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
    # No leading zero: that is no number in such a file.
    if [[ ${VALUE[$1]} =~ ^[1-9][0-9]{0,4}$ ]] && ((VALUE[$1] <= 65535)); then
        PORT=${VALUE[$1]}
    else
        not_translated "${FROM[$1]}: ${VALUE[$1]} is no port; $2 is taken"
    fi
}

# prepare PART DEFAULT_WORD...: makes ready what add_command writes: the command by
# which the scripts start PART, else the default. Fails if it cannot be written
# whole: half a command is worse than none.
prepare() {
    local part=$1 where name=${1//_/-} folder='' word line=''
    local -a words
    shift
    words=("$@")
    where=${FROM[command_$part]-${FROM[${part}_dir]-${FROM[${part}_script]-}}}
    case $part in
        letta_server) name=letta where=${FROM[command_$part]-${FROM[letta_script]-}} ;;
        demo_server) name=demo ;;
    esac
    if [[ -v COMMAND[$part] ]]; then
        mapfile -t words <<<"${COMMAND[$part]}"
        folder=${FOLDER[$part]}
    elif [[ -v NOT_READ[$part] ]]; then
        not_translated "${NOT_READ[$part]}: $name is left out, since its command could not be read"
        return 1
    elif [[ $part == livekit ]]; then
        folder=${VALUE[livekit_dir]}
    fi
    in_project "$folder"
    [[ $IN_PROJECT != . || -n ${VALUE[livekit_dir]-} && $part == livekit ]] || IN_PROJECT=
    PREPARED_FOLDER[$part]=$IN_PROJECT
    is_written "$IN_PROJECT" || return 1
    local own_folder=$IN_PROJECT
    [[ $own_folder != . ]] || own_folder=
    for word in "${words[@]}"; do
        in_command "$word" "$own_folder" "$line"
        is_written "$IN_PROJECT" || return 1
        line+=${line:+, }$QUOTED
    done
    PREPARED[$part]="command = [$line]"
    [[ -n ${ENVIRONMENT[$part]-} ]] || return 0
    line=
    while IFS= read -r word; do
        in_command "${word#*=}" "$own_folder" yes
        is_written "$IN_PROJECT" || return 1
        line+="${line:+, }${word%%=*} = $QUOTED"
    done <<<"${ENVIRONMENT[$part]}"
    PREPARED_ENVIRONMENT[$part]="env = { $line }"
}

# is_written TEXT: can it be written, as QUOTED? Else prepare's part is left out.
is_written() {
    if is_unset_in "$1"; then
        not_translated "$where: $name is left out, since $1 needs $UNSET, which is not set here"
    elif ! quoted "$1"; then
        not_translated "$where: $name is left out, since $1 holds what the file cannot say (a literal \$ or ~, or no UTF-8)"
    else
        return 0
    fi
    return 1
}

# in_command WORD OWN_FOLDER WORDS_BEFORE: sets IN_PROJECT, a word of a command that
# runs in the project folder or in a folder of its own.
in_command() {
    local word=$1 own_folder=$2 before=$3
    # As in --config=/project/file.
    [[ $BASE == "$dir" || $word != *[=:]"$BASE"/* ]] || word=${word//"$BASE/"/"$dir/"}
    in_project "$word"
    [[ $word != "$IN_PROJECT" ]] || return 0
    if [[ -n $own_folder ]]; then
        # From there, a path from the project folder would be another one.
        if [[ $IN_PROJECT == . ]]; then IN_PROJECT=$dir; else IN_PROJECT=$dir/$IN_PROJECT; fi
    elif [[ -z $before && $IN_PROJECT != */* ]]; then
        # A program without a slash is looked for in PATH.
        IN_PROJECT=./$IN_PROJECT
    fi
}

# add_command PART: what prepare has made ready.
add_command() {
    local from
    from=$(from "command_$1")
    add "${PREPARED[$1]}" "$from"
    [[ ! -v PREPARED_ENVIRONMENT[$1] ]] || add "${PREPARED_ENVIRONMENT[$1]}" "$from"
    if [[ -n ${PREPARED_FOLDER[$1]} ]]; then
        [[ $1 != livekit || ! -v VALUE[livekit_dir] ]] || in_project "${VALUE[livekit_dir]}"
        [[ $1 != livekit || ! -v VALUE[livekit_dir] || $IN_PROJECT != "${PREPARED_FOLDER[$1]}" ]] || from=${FROM[livekit_dir]}
        quoted "${PREPARED_FOLDER[$1]}" && add "folder = $QUOTED" "$from"
    fi
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
    local needs='' entry
    prepare_parts
    [[ ! -v PREPARED[livekit] ]] || needs='"livekit"'
    [[ ! -v PREPARED[letta_server] ]] || needs+="${needs:+, }\"letta\""
    TOML="# The voice system, as the original scripts in this folder describe it.
# Written by scripts/migrate import, which has run nothing of them; each line
# says where it comes from. What could not be translated is at the end.

"
    write_agent "$needs"
    [[ ! -v FROM[postgresql] ]] || write_postgresql
    if [[ -v PREPARED[letta_server] ]]; then
        write_letta
    elif [[ ! -v COMMAND[letta_server] && ! -v NOT_READ[letta_server] && (-v VALUE[letta_port] || -v VALUE[letta_url]) ]]; then
        not_translated "${FROM[letta_url]-${FROM[letta_port]-}}: no line starts the Letta server in a way that can be read; write a [[companion]] for it"
    fi
    [[ ! -v PREPARED[livekit] ]] || write_livekit
    [[ ! -v PREPARED[cors_proxy] ]] || write_cors_proxy
    [[ ! -v PREPARED[demo_server] ]] || write_demo_server
    if ((${#NOT_TRANSLATED[@]} > 0)); then
        TOML+=$'\n# Not translated; look at each, then take it out of this list:\n'
        TOML+=$(for entry in "${NOT_TRANSLATED[@]}"; do printf '# - %s\n' "${entry//$'\n'/ }"; done |
            tr -d '\000-\010\013-\037\177' | iconv -c -f UTF-8 -t UTF-8)$'\n'
    fi
}

# prepare_parts: the companions that can be written. Those whose command could not be
# read are named in the list.
prepare_parts() {
    local part
    local -a default
    for part in letta_server livekit cors_proxy demo_server; do
        default=()
        case $part in
            letta_server) [[ ! -v VALUE[letta_script] ]] || default=("${VALUE[letta_script]}") ;;
            livekit) [[ ! -v VALUE[livekit_dir] ]] || default=(./livekit-server --dev --bind 0.0.0.0) ;;
        esac
        [[ -v COMMAND[$part] || -v NOT_READ[$part] || ${#default[@]} -gt 0 ]] || continue
        [[ $part != demo_server ]] || find_demo_port
        prepare "$part" "${default[@]}" || unset "PREPARED[$part]"
    done
}

# find_demo_port: sets DEMO_PORT, and puts {port} in its place in the command.
find_demo_port() {
    local command=$'\n'${COMMAND[demo_server]-}$'\n'
    port demo_port 8888
    DEMO_PORT=$PORT
    if [[ ! -v VALUE[demo_port] && ${command//$'\n'/ } =~ \ http\.server\ ([1-9][0-9]{0,4})\  ]]; then
        DEMO_PORT=${BASH_REMATCH[1]} FROM[demo_port]=${FROM[command_demo_server]}
    fi
    [[ -v COMMAND[demo_server] ]] || return 0
    command=${command/$'\n'"$DEMO_PORT"$'\n'/$'\n{port}\n'}
    command=${command#$'\n'}
    COMMAND[demo_server]=${command%$'\n'}
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
    add_command letta_server
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
    add_command livekit
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
    local where=${FROM[command_demo_server]}
    TOML+=$'\n'
    add '[[companion]]' "$where"
    add 'name = "demo"' "$where"
    add_command demo_server
    add_log demo_server demo_server.log
    if [[ ${PREPARED[demo_server]} == *'"{port}"'* ]]; then
        port demo_fallback_port 8899
        add "ports = [$DEMO_PORT, $PORT]" "$(from demo_port)"
        DEMO_PORT='{port}'
        add 'ready = { port = "{port}" }' "$(from demo_port)"
    else
        add "ready = { port = $DEMO_PORT }" "$(from demo_port)"
    fi
    add 'on_start = "fresh"' "$AS_ALWAYS"
    add 'on_failure = "warn"' "$NEW"
    add "url = \"http://localhost:$DEMO_PORT/\"" "$(from demo_port)"
}
