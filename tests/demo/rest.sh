# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=bash
# Prints checksums of everything but what the writers write. usage: bash -s TREE LOAD-BELOW-TREE LOAD-DATABASE < rest.sh
set -euo pipefail
export LC_ALL=C
cd "$1"
paths() { find . -path "./$2" -prune -o "${@:3}" -print0 | sort -z; }

echo "names, owners, modes, links, times: $(find . -path "./$2" -prune -o -printf '%p %y %m %U %G %n %l %T@\0' | sort -z | sha256sum)"
echo "contents: $(paths "$1" "$2" -type f | xargs -0 sha256sum | sha256sum)"
echo "access control lists: $(paths "$1" "$2" ! -type l | xargs -0 getfacl --absolute-names --skip-base | sha256sum)"
echo "extended attributes: $(paths "$1" "$2" ! -type l | xargs -0 getfattr --absolute-names -d -m - | sha256sum)"
mysql -N -e "SELECT CONCAT('CHECKSUM TABLE \`', table_schema, '\`.\`', table_name, '\`;') FROM information_schema.tables
    WHERE table_type = 'BASE TABLE' AND table_schema NOT IN ('mysql', 'sys', 'information_schema', 'performance_schema', '$3')
    ORDER BY table_schema, table_name" | mysql -N
