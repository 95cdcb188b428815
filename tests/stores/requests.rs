//! How many requests a verb makes of an object store.

use crate::kit::s3;
use crate::proxy::Proxy;

#[test]
fn few_requests_are_made() {
    let Some((server, mut env)) = s3() else { return };
    let upstream = env["AWS_ENDPOINT_URL"].strip_prefix("http://").unwrap().parse().unwrap();
    let proxy = Proxy::start(upstream);
    env.insert("AWS_ENDPOINT_URL".into(), proxy.url());
    let lab = server.lab("s3://imgsnap-test/r", &env);
    lab.done(&["snapshot", "disk.img"]);
    lab.change(1);
    lab.done(&["snapshot", "disk.img"]);
    lab.change(2);
    let asked = |args: &[&str]| {
        proxy.clear();
        lab.done(args);
        let asked = proxy.requests();
        asked.iter().map(|r| format!("{} {}", r.method, r.target)).collect::<Vec<_>>()
    };
    let snapshot = asked(&["snapshot", "disk.img"]);
    let is_upload = |request: &&String| request.starts_with("PUT ") && request.contains(".delta");
    let others = snapshot.iter().filter(|r| !is_upload(r)).count();
    assert!(others <= 10, "{others}: {snapshot:#?}");
    let list = asked(&["list"]);
    // The configuration takes two, all names one, and each image one.
    assert!(list.len() <= 4, "{}: {list:#?}", list.len());
}
