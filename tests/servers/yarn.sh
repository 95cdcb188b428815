#!/usr/bin/env bash
# YARN with MapReduce over HDFS: a ResourceManager, NodeManagers and a JobHistoryServer beside the processes of hdfs.sh, each a Java process
# of its own (Hadoop 3.4.2 from Maven Central).
#
# yarn.sh start DIR [NODES]         two, if not said otherwise; nn, dn1, dn2, rm, jhs, nm1, nm2, ...
# yarn.sh stop DIR
# yarn.sh dfs|dfsadmin DIR [ARGUMENT...]        as with the command `hdfs`
# yarn.sh streaming DIR ARGUMENT...             as with `mapred streaming`; generic options (-files, -D) first
# yarn.sh yarn DIR application|node ARGUMENT...
# yarn.sh kill DIR nmI              kills a NodeManager with its containers: a machine that crashes
# yarn.sh restart DIR NAME
#
# DIR/bin has the commands hdfs and mapred for programs that call them. NodeManager I is the host 127.0.0.1I, as DataNode I is.
# shellcheck source=hdfs.sh
. "$(dirname "$0")/hdfs.sh"
jars=hadoop-yarn
artifacts+=(yarn-server-resourcemanager yarn-server-nodemanager yarn-server-timelineservice mapreduce-client-jobclient mapreduce-client-app
    mapreduce-client-shuffle mapreduce-client-hs streaming)
for of in options prepare launch answers; do eval "hdfs_$(declare -f $of)"; done

options() { hdfs_options "${1:-2}"; }

prepare() {
    hdfs_prepare
    local rm scheduler tracker admin page jhs jhs_page jhs_admin i others=()
    daemons+=(rm jhs)
    for ((i = 1; i <= nodes; i++)); do
        daemons+=("nm$i")
        others+=("nm${i}_port" "nm${i}_localizer" "nm${i}_page")
    done
    ports rm scheduler tracker admin page jhs jhs_page jhs_admin "${others[@]}"
    remember page jhs_page "${others[@]}"
    tell IMGSNAP_TEST_YARN="127.0.0.1:$rm" JAVA_HOME="$(dirname "$(dirname "$(readlink -f "$(command -v java)")")")"
    local java="-XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:-UsePerfData --add-opens=java.base/java.lang=ALL-UNNAMED"
    {
        echo '<configuration>'
        property yarn.resourcemanager.hostname 127.0.0.1
        property yarn.resourcemanager.address "127.0.0.1:$rm"
        property yarn.resourcemanager.scheduler.address "127.0.0.1:$scheduler"
        property yarn.resourcemanager.resource-tracker.address "127.0.0.1:$tracker"
        property yarn.resourcemanager.admin.address "127.0.0.1:$admin"
        property yarn.resourcemanager.webapp.address "127.0.0.1:$page"
        property yarn.nodemanager.aux-services mapreduce_shuffle
        property yarn.nodemanager.vmem-check-enabled false
        property yarn.nodemanager.pmem-check-enabled false
        property yarn.nodemanager.resource.memory-mb 1024
        property yarn.nodemanager.resource.cpu-vcores 2
        property yarn.scheduler.minimum-allocation-mb 128
        property yarn.nodemanager.disk-health-checker.max-disk-utilization-per-disk-percentage 99
        property yarn.nm.liveness-monitor.expiry-interval-ms 10000
        property yarn.am.liveness-monitor.expiry-interval-ms 10000
        # Three minutes otherwise, for which a job hangs on a node that is gone.
        property yarn.client.nodemanager-connect.max-wait-ms 8000
        property yarn.client.nodemanager-connect.retry-interval-ms 1000
        property yarn.application.classpath "$dir/conf:$cached/lib/*"
        echo '</configuration>'
    } >conf/yarn-site.xml
    {
        echo '<configuration>'
        property yarn.scheduler.capacity.root.queues default
        property yarn.scheduler.capacity.root.default.capacity 100
        property yarn.scheduler.capacity.maximum-am-resource-percent 0.5
        echo '</configuration>'
    } >conf/capacity-scheduler.xml
    {
        echo '<configuration>'
        property mapreduce.framework.name yarn
        property mapreduce.application.classpath "$dir/conf:$cached/lib/*"
        property yarn.app.mapreduce.am.staging-dir /staging
        property yarn.app.mapreduce.am.resource.mb 384
        property yarn.app.mapreduce.am.command-opts "-Xmx256m $java"
        property mapreduce.map.memory.mb 256
        property mapreduce.map.java.opts "-Xmx128m $java"
        # Here: in yarn-site.xml another one overrules it, and a second NodeManager finds the port taken.
        property mapreduce.shuffle.port 0
        property mapreduce.task.io.sort.mb 16
        property mapreduce.jobhistory.address "127.0.0.1:$jhs"
        property mapreduce.jobhistory.webapp.address "127.0.0.1:$jhs_page"
        property mapreduce.jobhistory.admin.address "127.0.0.1:$jhs_admin"
        echo '</configuration>'
    } >conf/mapred-site.xml
    mkdir bin
    printf '#!/bin/sh\nverb=$1; shift\nexec env -u IMGSNAP_TEST_SERVER "%s" "$verb" "%s" "$@"\n' "$self" "$dir" >bin/hdfs
    cp bin/hdfs bin/mapred
    chmod +x bin/*
}

launch() {
    local number=${1#nm} server=org.apache.hadoop.yarn.server
    case $1 in
    rm)
        jvm INFO $server.resourcemanager.ResourceManager
        jvm=("${jvm[@]/-Xmx128m/-Xmx256m}")
        ;;
    jhs) jvm INFO org.apache.hadoop.mapreduce.v2.hs.JobHistoryServer ;;
    nm[1-9])
        local port=$1_port localizer=$1_localizer page_of=$1_page host=127.0.0.1$number
        jvm INFO $server.nodemanager.NodeManager "-Dyarn.nodemanager.bind-host=$host" "-Dyarn.nodemanager.address=$host:${!port}" \
            "-Dyarn.nodemanager.localizer.address=$host:${!localizer}" "-Dyarn.nodemanager.webapp.address=$host:${!page_of}" \
            "-Dyarn.nodemanager.local-dirs=$dir/$1/local" "-Dyarn.nodemanager.log-dirs=$dir/$1/logs"
        ;;
    *)
        hdfs_launch "$1"
        return
        ;;
    esac
    spawn "$1" "${jvm[@]}"
}

answers() {
    local page_of=$1_page
    case $1 in
    rm) curl -sS "http://127.0.0.1:$page/ws/v1/cluster/info" | grep STARTED ;;
    jhs) curl -sS "http://127.0.0.1:$jhs_page/ws/v1/history/info" | grep hadoopVersion ;;
    nm*) curl -sS "http://127.0.0.1${1#nm}:${!page_of}/ws/v1/node/info" | grep '"nodeHealthy":true' ;;
    *) hdfs_answers "$1" ;;
    esac
}

finish() {
    run org.apache.hadoop.fs.FsShell -mkdir -p /staging /tmp
    run org.apache.hadoop.fs.FsShell -chmod 1777 /tmp
    until curl -sS -H 'Accept: application/json' "http://127.0.0.1:$page/ws/v1/cluster/metrics" | grep -q "\"activeNodes\":$nodes\b"; do sleep 0.1; done
}

verb_yarn() {
    case $1 in
    node) run org.apache.hadoop.yarn.client.cli.NodeCLI "$@" ;;
    *) run org.apache.hadoop.yarn.client.cli.ApplicationCLI "$@" ;;
    esac
}

verb_streaming() { run org.apache.hadoop.streaming.HadoopStreaming "$@"; }

# A NodeManager that goes takes its containers along, as a machine does.
signal() {
    local pid all
    pid=$(pid "$1") || fail "$1 does not run"
    below() { for child in $(ps -o pid= --ppid "$1"); do below "$child"; done; echo "$1"; }
    all=$pid
    [[ $1 != nm* ]] || all=$(below "$pid")
    # shellcheck disable=SC2086
    kill -s "${2:-KILL}" $all 2>/dev/null || true
    case ${2:-KILL} in
    KILL | TERM) while lives "$pid"; do sleep 0.02; done ;;
    esac
}

main "$@"
