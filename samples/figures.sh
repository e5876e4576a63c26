# shellcheck shell=bash
# What both demonstrations share: reading what weft-app prints, waiting, and printing. To be sourced.

# Share of each version and number of failures, of a summary.
shares() {
  local versions
  versions=$(sed -n 's/.*"versions":{\([^}]*\)}.*/\1/p' <<<"$1" | tr -d '"' | sed 's/:/ /g; s/,/, /g')
  echo "$(number requests "$1") requests: $versions; failed: $(number failed "$1")"
}

# What became of a request, of what `get` printed.
outcome() {
  local error
  error=$(field error "$1")
  if [[ -n $error ]]; then
    echo "closed without an answer ($error)"
  else
    echo "status $(number status "$1")"
  fi
}

# NAME JSON: the text of a field.
field() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p" <<<"$2" | head -1; }

# NAME JSON: the number of a field, outside of nested objects.
number() { sed -n "s/^[^}]*\"$1\":\([0-9]*\).*/\1/p" <<<"$2" | head -1; }

# FILE of answers: when the last one of v1 came, in milliseconds since 1970.
last_of_v1() { grep '"version":"v1"' "$1" | sed -n 's/.*"at":\([0-9]*\).*/\1/p' | sort -n | tail -1; }

# FILE NUMBER: whether it has so many lines.
has_lines() { [[ -e $1 ]] && (($(wc -l <"$1") >= $2)); }

title() {
  if [[ -t 1 ]]; then
    printf '\n\033[1m%s\033[0m\n' "$1"
  else
    printf '\n%s\n' "$1"
  fi
}

show() { echo "    $1"; }
