#!/usr/bin/env bash
# HDFS: a NameNode and DataNodes, each a Java process of its own (Hadoop 3.4.2 from Maven Central).
#
# hdfs.sh start DIR [DATANODES]        one, if not said otherwise; nn, dn1, dn2, ...
# hdfs.sh stop DIR
# hdfs.sh dfs|dfsadmin|fsck|lsSnapshottableDir DIR [ARGUMENT...]    as with the command `hdfs`
# hdfs.sh kill DIR nn|dnI [SIGNAL]
# hdfs.sh restart DIR nn|dnI
#
# DIR/env names the NameNode, its WebHDFS and the configuration. Each block has two replicas, if there are two DataNodes, which call
# themselves 127.0.0.11, 127.0.0.12, ..., so that it can be told where a block is. One that is killed counts as dead after 20 s; until then
# new blocks are given to it. A command takes a second or two, which is the start of Java.
. "$(dirname "$0")/common.sh"
hadoop=3.4.2
nodes=1
jars=hadoop
artifacts=(common hdfs hdfs-client)
daemons=(nn)
together=yes

options() {
    nodes=${1:-1}
    [[ $nodes =~ ^[1-9]$ ]] || fail "one to nine DataNodes"
    # It stands in URLs and in a class path.
    [[ $dir != *[!A-Za-z0-9._/-]* ]] || fail "no folder for Hadoop, which wants plain letters: $dir"
}

install() {
    local artifact
    {
        echo '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
        echo '<groupId>test</groupId><artifactId>test</artifactId><version>1</version><packaging>pom</packaging><dependencies>'
        for artifact in "${artifacts[@]}"; do
            echo "<dependency><groupId>org.apache.hadoop</groupId><artifactId>hadoop-$artifact</artifactId><version>$hadoop</version></dependency>"
        done
        echo '</dependencies></project>'
    } >"$1/pom.xml"
    mvn -q -B -f "$1/pom.xml" -Dmaven.repo.local="$1/maven" \
        org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$1/lib" &&
        rm -rf "$1/maven"
}

property() { echo "<property><name>$1</name><value>$2</value></property>"; }

prepare() {
    need java=default-jre-headless
    [ -d "$cache/$jars-$hadoop" ] || need mvn=maven
    cached "$jars-$hadoop" install
    local name rpc web others
    others=()
    for ((i = 1; i <= nodes; i++)); do
        daemons+=("dn$i")
        others+=("dn${i}_data" "dn${i}_web" "dn${i}_ipc")
    done
    ports rpc web "${others[@]}"
    remember cached nodes web "${others[@]}"
    tell IMGSNAP_TEST_HDFS="hdfs://127.0.0.1:$rpc" IMGSNAP_TEST_WEBHDFS="http://127.0.0.1:$web/webhdfs/v1" HADOOP_CONF_DIR="$dir/conf"
    # The jars lack the web pages, without which no web server starts.
    for name in hdfs datanode secondary; do
        mkdir -p "web/webapps/$name/WEB-INF"
        echo '<web-app/>' >"web/webapps/$name/WEB-INF/web.xml"
    done
    mkdir conf
    {
        echo '<configuration>'
        property fs.defaultFS "hdfs://127.0.0.1:$rpc"
        property hadoop.tmp.dir "$dir/tmp"
        echo '</configuration>'
    } >conf/core-site.xml
    {
        echo '<configuration>'
        property dfs.replication $((nodes < 2 ? 1 : 2))
        property dfs.blocksize 8388608
        property dfs.namenode.fs-limits.min-block-size 65536
        property dfs.namenode.name.dir "file://$dir/nn"
        property dfs.namenode.rpc-address "127.0.0.1:$rpc"
        property dfs.namenode.http-address "127.0.0.1:$web"
        property dfs.namenode.datanode.registration.ip-hostname-check false
        property dfs.namenode.safemode.extension 0
        property dfs.heartbeat.interval 1
        property dfs.namenode.heartbeat.recheck-interval 5000
        property dfs.namenode.redundancy.interval.seconds 1s
        property dfs.client.block.write.replace-datanode-on-failure.best-effort true
        echo '</configuration>'
    } >conf/hdfs-site.xml
    cat >conf/log4j.properties <<'CONF'
log4j.rootLogger=${hadoop.root.logger}
log4j.appender.console=org.apache.log4j.ConsoleAppender
log4j.appender.console.target=System.err
log4j.appender.console.layout=org.apache.log4j.PatternLayout
log4j.appender.console.layout.ConversionPattern=%d{ISO8601} %p %c{1}: %m%n
log4j.logger.org.apache.hadoop.util.NativeCodeLoader=ERROR
CONF
}

# jvm LEVEL CLASS [ARGUMENT...]: puts a command into the array $jvm.
jvm() {
    local package
    jvm=(java -Xmx128m -Xss512k -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:-UsePerfData -Djava.net.preferIPv4Stack=true
        "-Djava.io.tmpdir=$dir/tmp" "-Dhadoop.root.logger=$1,console")
    for package in java.lang java.util java.net java.nio sun.nio.ch; do
        jvm+=("--add-opens=java.base/$package=ALL-UNNAMED")
    done
    jvm+=(-cp "$dir/conf:$dir/web:$cached/lib/*" "${@:2}")
}

launch() {
    case $1 in
    nn)
        if [ ! -d nn ]; then
            jvm INFO org.apache.hadoop.hdfs.server.namenode.NameNode -format -nonInteractive
            logged format "${jvm[@]}"
        fi
        jvm INFO org.apache.hadoop.hdfs.server.namenode.NameNode
        ;;
    dn[1-9])
        local data=$1_data web=$1_web ipc=$1_ipc
        jvm INFO org.apache.hadoop.hdfs.server.datanode.DataNode "-Ddfs.datanode.data.dir=file://$dir/$1" \
            "-Ddfs.datanode.hostname=127.0.0.1${1#dn}" "-Ddfs.datanode.address=127.0.0.1:${!data}" \
            "-Ddfs.datanode.http.address=127.0.0.1:${!web}" "-Ddfs.datanode.ipc.address=127.0.0.1:${!ipc}"
        ;;
    *) fail "no such process: $1" ;;
    esac
    spawn "$1" "${jvm[@]}"
}

bean() { curl -sS "http://127.0.0.1:$1/jmx?qry=Hadoop:service=$2"; }

answers() {
    local web_port=$1_web
    case $1 in
    nn) bean "$web" NameNode,name=NameNodeInfo | grep '"Safemode" : "",' ;;
    *) bean "${!web_port}" DataNode,name=DataNodeInfo | grep RUNNING ;;
    esac
}

run() {
    jvm WARN "$@"
    "${jvm[@]}"
}
verb_dfs() { run org.apache.hadoop.fs.FsShell "$@"; }
verb_dfsadmin() { run org.apache.hadoop.hdfs.tools.DFSAdmin "$@"; }
verb_fsck() { run org.apache.hadoop.hdfs.tools.DFSck "$@"; }
verb_lsSnapshottableDir() { run org.apache.hadoop.hdfs.tools.snapshot.LsSnapshottableDir "$@"; }

# yarn.sh reads it, too.
[ "${0##*/}" != hdfs.sh ] || main "$@"
