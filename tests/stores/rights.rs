//! Hosts whose keys may not do everything: what they need is not denied.

use crate::kit::{Lab, Server, s3};
use crate::proxy::{Asked, Fault, Proxy};

/// A repository with two snapshots in a bucket, and the proxy before it.
fn lab() -> Option<(Server, Proxy, Lab, [Vec<u8>; 2])> {
    let (server, mut env) = s3()?;
    let upstream = env["AWS_ENDPOINT_URL"].strip_prefix("http://").unwrap().parse().unwrap();
    let proxy = Proxy::start(upstream);
    env.insert("AWS_ENDPOINT_URL".into(), proxy.url());
    let lab = server.lab("s3://imgsnap-test/vm/r", &env);
    let first = lab.read("disk.img");
    lab.done(&["snapshot", "disk.img"]);
    let second = lab.change(1);
    lab.done(&["snapshot", "disk.img"]);
    Some((server, proxy, lab, [first, second]))
}

#[test]
fn keys_with_fewer_rights_do() {
    let Some((_server, proxy, lab, [first, second])) = lab() else { return };

    // Who may only read leaves no marker, and needs none.
    proxy.set_rule(|asked: &Asked<'_>| match asked.method {
        "GET" | "HEAD" => Fault::None,
        _ => Fault::Status(403),
    });
    for args in [&["list"][..], &["show", "disk@1"], &["verify"], &["stats"], &["config", "show"]] {
        let run = lab.run_as("reader", args);
        assert_eq!((run.code, run.err.as_str()), (Some(0), ""), "{args:?}: {run:?}");
    }
    for (reference, bytes) in [("disk@1", &first), ("disk@2", &second)] {
        let args = ["restore", reference, "-o", "read.img", "--force"];
        let run = lab.run_as("reader", &args);
        assert_eq!(run.code, Some(0), "{run:?}");
        assert!(lab.read("read.img") == *bytes);
    }
    let line = lab.fails(&["snapshot", "disk.img"]);
    assert!(line.contains("cannot write") && line.contains("s3://imgsnap-test"), "{line}");

    // Who may list what is his alone: each listing is of names below the repository.
    proxy.set_rule(|asked: &Asked<'_>| {
        let is_listing = asked.method == "GET" && asked.target.contains("list-type=2");
        let is_own = asked.target.contains("prefix=vm%2Fr");
        if is_listing && !is_own { Fault::Status(403) } else { Fault::None }
    });
    lab.change(2);
    for args in [
        &["snapshot", "disk.img"][..],
        &["list"],
        &["verify"],
        &["restore", "disk@3", "-o", "own.img"],
    ] {
        lab.done(args);
    }

    // Who may not remove adds; what he drops is condemned, and goes when somebody may.
    proxy.set_rule(|asked: &Asked<'_>| match asked.method {
        "DELETE" => Fault::Status(403),
        _ => Fault::None,
    });
    let last = lab.change(3);
    lab.done(&["snapshot", "disk.img"]);
    let run = lab.run(&["delete", "disk@2"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert_eq!(lab.json(&["list", "disk"]).as_array().unwrap().len(), 3);
    lab.ensure_is("disk@4", &last);
    proxy.set_rule(|_: &Asked<'_>| Fault::None);
    lab.done(&["prune", "disk", "--keep-last", "10"]);
    lab.ensure_is("disk@1", &first);
    lab.ensure_is("disk@4", &last);
    assert!(lab.done(&["verify"]).contains("no damage found"));
}
