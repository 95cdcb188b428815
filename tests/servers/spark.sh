#!/usr/bin/env bash
# Spark from PyPI: a master and workers, each a Java process of its own, or, with no workers, what a local-cluster needs.
#
# spark.sh start DIR [WORKERS]      two, if not said otherwise; master, w1, w2, ...
# spark.sh stop DIR
# spark.sh submit DIR ARGUMENT...   spark-submit, to the master if there is one, otherwise to two executors of its own
# spark.sh kill DIR wI              kills a worker with its executors
# spark.sh restart DIR wI
#
# DIR/env has SPARK_HOME and what a driver of one's own needs. Worker I is the host 127.0.0.1I, as DataNode I of hdfs.sh is, so that it can
# be told where a task ran. A start of Java takes some seconds, and a job script twenty.
. "$(dirname "$0")/common.sh"
pyspark=4.3.0
workers=2
together=yes

options() {
    workers=${1:-2}
    [[ $workers =~ ^[0-9]$ ]] || fail "no more than nine workers"
    [[ $dir != *[!A-Za-z0-9._/-]* ]] || fail "no folder for Spark, which wants plain letters: $dir"
}

install() {
    python3 -m venv "$1" && "$1/bin/pip" install --quiet "pyspark==$pyspark" &&
        # It is moved to its place.
        find "$1/bin" -maxdepth 1 -type f -exec sed -i "s|$1|${1%.new}|g" {} +
}

prepare() {
    need java=default-jre-headless python3=python3
    cached "pyspark-$pyspark" install
    local name master home others=()
    daemons=()
    home=$(echo "$cached"/lib/python*/site-packages/pyspark)
    [ -d "$home" ] || skip "no Spark in $cached"
    [ "$workers" = 0 ] || daemons=(master)
    for ((i = 1; i <= workers; i++)); do
        daemons+=("w$i")
        others+=("w${i}_port" "w${i}_page")
    done
    ports master page "${others[@]}"
    remember cached workers master page "${others[@]}"
    tell SPARK_HOME="$home" SPARK_CONF_DIR="$dir/conf" SPARK_LOCAL_IP=127.0.0.1 SPARK_NO_DAEMONIZE=1 \
        PYSPARK_PYTHON="$cached/bin/python" PYSPARK_DRIVER_PYTHON="$cached/bin/python"
    if [ "$workers" = 0 ]; then
        tell IMGSNAP_TEST_SPARK='local-cluster[2,1,1024]'
    else
        tell IMGSNAP_TEST_SPARK="spark://127.0.0.1:$master"
    fi
    mkdir conf
    cat >conf/spark-defaults.conf <<CONF
spark.driver.host 127.0.0.1
spark.driver.bindAddress 127.0.0.1
spark.driver.memory 512m
spark.executor.memory 512m
spark.executor.cores 1
spark.local.dir $dir/tmp
spark.ui.enabled false
spark.network.timeout 30s
spark.network.timeoutInterval 10s
spark.executor.heartbeatInterval 3s
CONF
    printf '%s\n' 'rootLogger.level=warn' 'rootLogger.appenderRef.c.ref=c' 'appender.c.type=Console' 'appender.c.name=c' \
        'appender.c.target=SYSTEM_ERR' 'appender.c.layout.type=PatternLayout' \
        'appender.c.layout.pattern=%d{HH:mm:ss} %p %c{1}: %m%n%ex' >conf/log4j2.properties
}

launch() {
    local class=org.apache.spark.deploy number=${1#w}
    case $1 in
    master)
        SPARK_DAEMON_MEMORY=192m spawn master "$SPARK_HOME/bin/spark-class" $class.master.Master --host 127.0.0.1 \
            --port "$master" --webui-port "$page"
        ;;
    w[1-9])
        local port=$1_port page_of=$1_page
        SPARK_DAEMON_MEMORY=128m SPARK_LOCAL_IP=127.0.0.1$number SPARK_PUBLIC_DNS=127.0.0.1$number \
            spawn "$1" "$SPARK_HOME/bin/spark-class" $class.worker.Worker --host "127.0.0.1$number" --port "${!port}" \
            --webui-port "${!page_of}" --cores 1 --memory 1g --work-dir "$dir/work$number" "spark://127.0.0.1:$master"
        ;;
    *) fail "no such process: $1" ;;
    esac
}

answers() {
    local page_of=$1_page
    case $1 in
    master) curl -sS "http://127.0.0.1:$page/json/" ;;
    *) curl -sS -o tmp/page "http://127.0.0.1${1#w}:${!page_of}/" ;;
    esac
}

# All workers are known to the master.
finish() {
    until [ "$workers" = 0 ] || curl -sS "http://127.0.0.1:$page/json/" | grep -q "\"aliveworkers\" : $workers"; do sleep 0.1; done
}

verb_submit() {
    exec "$SPARK_HOME/bin/spark-submit" --master "$IMGSNAP_TEST_SPARK" "$@"
}

# A worker that goes takes its executors along.
signal() {
    local pid all
    pid=$(pid "$1") || fail "$1 does not run"
    below() { for child in $(ps -o pid= --ppid "$1"); do below "$child"; done; echo "$1"; }
    all=$(below "$pid")
    # shellcheck disable=SC2086
    kill -s "${2:-KILL}" $all 2>/dev/null || true
    while lives "$pid"; do sleep 0.02; done
}

main "$@"
