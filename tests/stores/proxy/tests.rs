//! The proxy passes all as it is, and does the wrong that it is asked for.

use super::origin::{Client, Origin, chunks, content, wait_until};
use super::{Fault, Proxy};
use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
const MOMENT: Duration = Duration::from_millis(100);

/// A server, a proxy before it with a fault for all, and a client.
fn with(fault: Fault) -> (Origin, Proxy, Client) {
    let origin = Origin::start();
    let proxy = Proxy::start(origin.address);
    proxy.set_rule(move |_| fault);
    let client = Client::new(&proxy.url());
    (origin, proxy, client)
}

#[test]
fn heads_and_bodies_pass_as_they_are_over_one_connection() {
    let (origin, proxy, mut client) = with(Fault::None);
    let head = "PUT /a%20b?x=1&y HTTP/1.1\r\nhOST:  some.where:1\r\nX-Odd:\tö \r\ncontent-length: 3\r\n\r\n";
    client.send(format!("{head}abc").as_bytes()).unwrap();
    let answer = client.answer("PUT").unwrap();
    assert_eq!(answer.head, "HTTP/1.1 200 OK\r\neTag:  \"e1\"\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(origin.done(), [(head.to_owned(), 3)]);
    for bytes in [0, 1, 300_000] {
        let answer = client.get(&format!("/bytes/{bytes}")).unwrap();
        assert!(answer.body == content(bytes) && answer.is_whole);
    }
    assert_eq!(origin.state.connections.load(Ordering::SeqCst), 1);
    let log = proxy.requests();
    assert_eq!(log.len(), 4);
    assert_eq!((&*log[0].method, &*log[0].target), ("PUT", "/a%20b?x=1&y"));
    assert_eq!((log[0].body, log[0].status, log[0].answer), (3, Some(200), 0));
    assert_eq!((log[3].body, log[3].status, log[3].answer), (0, Some(200), 300_000));
    assert!(log.is_sorted_by_key(|request| request.start));
    proxy.clear();
    assert!(proxy.requests().is_empty());
}

#[test]
fn chunks_pass_both_ways_as_they_are() {
    let (origin, proxy, mut client) = with(Fault::None);
    client.send(b"PUT /up HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
    // In pieces that end anywhere.
    for piece in chunks(200_000).chunks(9_999) {
        client.send(piece).unwrap();
    }
    assert_eq!(client.answer("PUT").unwrap().status, 200);
    assert_eq!(origin.done()[0].1, 200_000);
    client.send(b"GET /chunks/200000 HTTP/1.1\r\n\r\n").unwrap();
    let head = b"HTTP/1.1 200 OK\r\neTag:  \"e1\"\r\nTransfer-Encoding: chunked\r\n\r\n";
    let right = [&head[..], &chunks(200_000)].concat();
    let mut bytes = vec![0; right.len()];
    client.stream.read_exact(&mut bytes).unwrap();
    assert!(bytes == right);
    assert_eq!(client.get("/bytes/5").unwrap().body, content(5));
    let log = proxy.requests();
    assert_eq!((log[0].body, log[1].answer), (200_000, 200_000));
}

#[test]
fn answers_without_a_body_and_old_ones_end_where_they_end() {
    let (origin, proxy, mut client) = with(Fault::None);
    assert_eq!(client.ask("HEAD", "/bytes/9", b"").unwrap().status, 200);
    assert_eq!(client.ask("DELETE", "/x", b"").unwrap().status, 204);
    assert_eq!(client.get("/same").unwrap().status, 304);
    assert_eq!(client.get("/bytes/9").unwrap().body, content(9));
    assert_eq!(origin.state.connections.load(Ordering::SeqCst), 1);
    for target in ["/end/70000", "/old/70000"] {
        let mut client = Client::new(&proxy.url());
        assert!(client.get(target).unwrap().body == content(70_000));
        assert!(client.is_closed());
    }
}

#[test]
fn a_client_that_waits_is_told_to_continue() {
    let head = b"PUT /x HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    for fault in [Fault::None, Fault::Status(503)] {
        let (origin, _proxy, mut client) = with(fault);
        client.send(head).unwrap();
        assert_eq!(client.answer("PUT").unwrap().status, 100);
        client.send(b"hello").unwrap();
        let status = if fault == Fault::None { 200 } else { 503 };
        assert_eq!(client.answer("PUT").unwrap().status, status);
        assert_eq!(origin.done().len(), usize::from(fault == Fault::None));
    }
}

#[test]
fn an_answer_may_come_before_the_end_of_the_request() {
    let (origin, proxy, mut client) = with(Fault::None);
    client.send(b"PUT /early HTTP/1.1\r\nContent-Length: 9999999\r\n\r\nstart").unwrap();
    assert_eq!(client.answer("PUT").unwrap().text(), "early");
    assert!(client.is_closed());
    let mut client = Client::new(&proxy.url());
    let wait = b"PUT /early HTTP/1.1\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n";
    client.send(wait).unwrap();
    assert_eq!(client.answer("PUT").unwrap().status, 403);
    assert!(client.is_closed());
    assert!(origin.done().is_empty());
}

#[test]
fn bodies_are_passed_on_as_they_come() {
    let (origin, _proxy, mut client) = with(Fault::None);
    const HALF: usize = 40 << 20;
    client
        .send(format!("PUT /x HTTP/1.1\r\nContent-Length: {}\r\n\r\n", 2 * HALF).as_bytes())
        .unwrap();
    client.send(&vec![1; HALF]).unwrap();
    wait_until(|| origin.state.come.load(Ordering::SeqCst) == HALF as u64);
    client.send(&vec![2; HALF]).unwrap();
    assert_eq!(client.answer("PUT").unwrap().status, 200);
    assert_eq!(origin.done()[0].1, 2 * HALF as u64);
}

#[test]
fn what_is_refused_or_lost_does_not_go_on() {
    for fault in [Fault::Refuse, Fault::ResetBefore, Fault::Lost(MOMENT)] {
        for (method, body) in [("GET", &b""[..]), ("PUT", b"abc"), ("PUT", &[7; 300_000])] {
            let (origin, proxy, mut client) = with(fault);
            let start = Instant::now();
            let error = client.ask(method, "/x", body).unwrap_err().kind();
            let is_reset = error == ErrorKind::ConnectionReset;
            let is_told = if fault == Fault::ResetBefore {
                is_reset
            } else {
                error == ErrorKind::UnexpectedEof
            };
            // A client that is still sending is told in its own way.
            assert!(is_told || (fault == Fault::Refuse && !body.is_empty()), "{fault:?}: {error}");
            assert!(start.elapsed() >= MOMENT || fault != Fault::Lost(MOMENT));
            assert!(proxy.settle() && origin.done().is_empty());
            let log = proxy.requests();
            assert_eq!((log.len(), log[0].status, log[0].fault), (1, None, fault));
        }
    }
}

#[test]
fn what_is_unanswered_was_carried_out_and_resets_the_connection() {
    for (method, body) in [("GET", &b""[..]), ("PUT", b"abc"), ("PUT", &[7; 300_000])] {
        let (origin, proxy, mut client) = with(Fault::Unanswered);
        let error = client.ask(method, "/bytes/1000", body).unwrap_err().kind();
        assert_eq!(error, ErrorKind::ConnectionReset);
        assert_eq!(origin.done()[0].1, body.len() as u64);
        assert_eq!(proxy.requests()[0].status, None);
    }
    let (origin, _proxy, mut client) = with(Fault::Unanswered);
    client.send(b"PUT /up HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
    client.send(&chunks(200_000)).unwrap();
    assert_eq!(client.answer("PUT").unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(origin.done()[0].1, 200_000);
}

#[test]
fn a_body_is_cut_or_short_at_the_byte() {
    for kind in ["bytes", "chunks", "end"] {
        for end in [0, 1, 100_000, 149_999] {
            let target = format!("/{kind}/150000");
            let (_origin, proxy, mut client) = with(Fault::CutBody(end));
            let answer = client.get(&target).unwrap();
            assert!(
                answer.body.iter().eq(&content(end as usize)),
                "{kind}, {end}: {}",
                answer.body.len()
            );
            // What has no length and no chunks just ends.
            assert_eq!(answer.is_whole, kind == "end");
            assert!(kind != "bytes" || answer.head.contains("Content-Length: 150000\r\n"));
            assert!(client.is_closed());
            assert_eq!(proxy.requests()[0].answer, end);

            proxy.set_rule(move |_| Fault::ShortBody(end));
            let mut client = Client::new(&proxy.url());
            for _ in 0..if kind == "end" { 1 } else { 2 } {
                let answer = client.get(&target).unwrap();
                assert!(answer.is_whole && answer.body == content(end as usize), "{kind}, {end}");
            }
        }
    }
}

#[test]
fn an_answer_is_replaced_before_or_after_the_request_is_carried_out() {
    let codes = [
        (403, "AccessDenied"),
        (404, "NoSuchKey"),
        (409, "ConditionalRequestConflict"),
        (429, "TooManyRequests"),
        (500, "InternalError"),
        (503, "SlowDown"),
    ];
    let statuses = codes.map(|(status, code)| (Fault::Status(status), status, code, 0));
    let later = codes.map(|(status, code)| (Fault::StatusAfter(status), status, code, 1));
    let ok = [
        (Fault::OkWithError, 200, "InternalError", 0),
        (Fault::OkWithErrorAfter, 200, "InternalError", 1),
    ];
    for (fault, status, code, count) in statuses.into_iter().chain(later).chain(ok) {
        let (origin, proxy, mut client) = with(fault);
        let answer = client.ask("PUT", "/bytes/1000", b"abc").unwrap();
        assert_eq!(answer.status, status);
        assert!(
            answer.text().contains(&format!("<Error><Code>{code}</Code>")),
            "{}",
            answer.text()
        );
        assert_eq!(origin.done().len(), count);
        assert_eq!(proxy.requests()[0].status, Some(status));
        // The connection is as good as before.
        assert!(client.ask("HEAD", "/bytes/1000", b"").unwrap().body.is_empty());
        proxy.set_rule(|_| Fault::None);
        assert_eq!(client.get("/bytes/10").unwrap().body, content(10));
    }
}

#[test]
fn an_etag_or_a_byte_is_another() {
    let (_origin, proxy, mut client) = with(Fault::WrongETag);
    let answer = client.get("/bytes/10").unwrap();
    assert!(
        answer.head.contains("\r\neTag: \"bad0") && !answer.head.contains("e1"),
        "{}",
        answer.head
    );
    for kind in ["bytes", "chunks", "end"] {
        for (at, is) in [(0, 0), (99_999, 99_999), (100_005, 5)] {
            proxy.set_rule(move |_| Fault::FlipByte(at));
            let mut client = Client::new(&proxy.url());
            let answer = client.get(&format!("/{kind}/100000")).unwrap();
            let right = content(100_000);
            assert!(answer.is_whole && answer.body.len() == right.len());
            let wrong = right.iter().zip(&answer.body).enumerate().filter(|(_, (a, b))| a != b);
            assert_eq!(wrong.map(|(at, _)| at).collect::<Vec<_>>(), [is]);
        }
    }
}

#[test]
fn a_fault_that_cannot_be_done_is_not_told() {
    for fault in
        [Fault::CutBody(10), Fault::ShortBody(10), Fault::FlipByte(0), Fault::Stall(MOMENT)]
    {
        let (_origin, proxy, mut client) = with(fault);
        let target = if matches!(fault, Fault::FlipByte(_) | Fault::Stall(_)) {
            "/bytes/0"
        } else {
            "/bytes/10"
        };
        assert!(client.get(target).unwrap().is_whole);
        assert_eq!(client.ask("HEAD", "/bytes/100", b"").unwrap().status, 200);
        assert!(client.get("/bytes/100").unwrap().body.len() >= 10);
        let faults = proxy.requests().into_iter().map(|request| request.fault);
        assert!(faults.eq([Fault::None, Fault::None, fault]));
    }
    let (_origin, proxy, mut client) = with(Fault::WrongETag);
    client.ask("DELETE", "/x", b"").unwrap();
    assert_eq!(proxy.requests()[0].fault, Fault::None);
}

#[test]
fn a_request_is_carried_out_twice_and_answered_once() {
    let (origin, proxy, mut client) = with(Fault::Twice);
    client.ask("PUT", "/bytes/7", &content(100_000)).unwrap();
    assert!(proxy.settle());
    client.send(b"PUT /bytes/7 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
    client.send(&chunks(200_000)).unwrap();
    assert_eq!(client.answer("PUT").unwrap().body, content(7));
    assert!(proxy.settle());
    let done = origin.done();
    assert!(done[0] == done[1] && done[2] == done[3] && done.len() == 4, "{done:?}");
    assert_eq!((done[0].1, done[2].1, proxy.requests().len()), (100_000, 200_000, 2));
}

#[test]
fn requests_and_answers_are_late() {
    let (_origin, proxy, mut client) = with(Fault::Delay(MOMENT));
    let took = |client: &mut Client, target: &str| {
        let start = Instant::now();
        assert!(client.get(target).unwrap().is_whole);
        start.elapsed()
    };
    assert!(took(&mut client, "/bytes/1") >= MOMENT);
    proxy.set_rule(|_| Fault::Stall(MOMENT));
    for kind in ["bytes", "chunks"] {
        assert!(took(&mut client, &format!("/{kind}/100000")) >= MOMENT);
    }
    proxy.set_rule(|_| Fault::None);
    proxy.set_latency(MOMENT / 5);
    let start = Instant::now();
    (0..5).for_each(|_| assert!(took(&mut client, "/bytes/1") >= MOMENT / 5));
    assert!(start.elapsed() < 30 * SECOND);
    proxy.set_latency(Duration::ZERO);
    // Both ways together, and all connections.
    proxy.set_rate(Some(1_000_000));
    let start = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| took(&mut Client::new(&proxy.url()), "/bytes/100000"));
        client.ask("PUT", "/x", &content(100_000)).unwrap();
    });
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(190) && took < 30 * SECOND, "{took:?}");
}

#[test]
fn a_stalled_body_stalls_at_its_half() {
    for kind in ["bytes", "chunks", "end"] {
        let (_origin, proxy, mut client) = with(Fault::Stall(1000 * SECOND));
        client.send(format!("GET /{kind}/100000 HTTP/1.1\r\n\r\n").as_bytes()).unwrap();
        wait_until(|| proxy.requests().last().is_some_and(|request| request.answer == 50_000));
        thread::sleep(MOMENT);
        assert_eq!(proxy.requests()[0].answer, 50_000);
        drop(proxy);
        assert!(client.answer("GET").unwrap().body == content(50_000));
    }
}

#[test]
fn a_rule_knows_what_is_asked() {
    let (_origin, proxy, mut client) = with(Fault::None);
    proxy.set_rule(|asked| match (asked.number, asked.method, asked.target) {
        (1, ..) => Fault::Status(500),
        (_, "PUT", "/a?b=c") => Fault::Status(503),
        _ if asked.header("if-none-match") == Some("*") => Fault::Status(409),
        _ => Fault::None,
    });
    let mut statuses = Vec::new();
    for target in ["/a?b=c", "/bytes/1", "/bytes/1"] {
        statuses.push(client.ask("PUT", target, b"x").unwrap().status);
    }
    client.send(b"PUT /bytes/1 HTTP/1.1\r\nIf-None-Match: *\r\n\r\n").unwrap();
    statuses.push(client.answer("PUT").unwrap().status);
    assert_eq!(statuses, [503, 500, 200, 409]);
    proxy.clear();
    assert_eq!(client.get("/x").unwrap().status, 200);
    assert_eq!(client.get("/x").unwrap().status, 500);
}

#[test]
fn requests_at_once_are_counted() {
    let (origin, proxy, mut client) = with(Fault::None);
    for _ in 0..100 {
        assert!(client.get("/bytes/100").unwrap().is_whole);
        client = Client::new(&proxy.url());
    }
    assert_eq!(proxy.most_at_once(), 1);
    // Four descriptors each; 1024 are usual.
    const MANY: usize = 150;
    thread::scope(|scope| {
        for _ in 0..MANY {
            scope.spawn(|| {
                let mut client = Client::new(&proxy.url());
                assert_eq!(client.get(&format!("/meet/{MANY}")).unwrap().status, 200);
            });
        }
    });
    assert_eq!((proxy.most_at_once(), origin.done().len()), (MANY, MANY + 100));
    proxy.clear();
    assert_eq!(proxy.most_at_once(), 0);
}

/// Linux has a sender wait for minutes if it was told that there is no room, and then no more.
#[test]
fn a_client_that_goes_on_sending_is_not_left_waiting() {
    let head = b"PUT /stuck HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n";
    let piece = vec![7; 1 << 20];
    let send = |client: &Client| (0..90_000).try_for_each(|_| client.send(&piece));
    thread::scope(|scope| {
        for fault in [Fault::None, Fault::Unanswered, Fault::Refuse] {
            scope.spawn(move || {
                let (_origin, _proxy, client) = with(fault);
                client.send(head).unwrap();
                let start = Instant::now();
                assert!(send(&client).is_err());
                assert!(start.elapsed() < 30 * SECOND);
            });
        }
    });
    let (_origin, proxy, client) = with(Fault::Delay(1000 * SECOND));
    client.send(head).unwrap();
    thread::scope(|scope| {
        let sending = scope.spawn(|| send(&client));
        wait_until(|| !proxy.requests().is_empty());
        let start = Instant::now();
        thread::sleep(MOMENT);
        drop(proxy);
        assert!(sending.join().unwrap().is_err());
        assert!(start.elapsed() < 30 * SECOND);
    });
}

#[test]
fn a_server_goes_and_another_one_comes() {
    let (origin, proxy, mut client) = with(Fault::None);
    assert!(client.get("/bytes/1").unwrap().is_whole);
    drop(origin);
    assert_eq!(client.get("/bytes/1").unwrap_err().kind(), ErrorKind::UnexpectedEof);
    let other = Origin::start();
    let mut client = Client::new(&proxy.url());
    assert!(client.get("/bytes/1").is_err());
    proxy.set_upstream(other.address);
    let mut client = Client::new(&proxy.url());
    assert!(client.get("/bytes/1").unwrap().is_whole);
    // A connection of the client outlives the server's.
    let third = Origin::start();
    proxy.set_upstream(third.address);
    assert!(client.get("/bytes/1").unwrap().is_whole);
    assert_eq!((other.done().len(), third.done().len()), (1, 1));
}

#[test]
fn all_ends_when_it_is_dropped() {
    let (_origin, proxy, mut idle) = with(Fault::Lost(1000 * SECOND));
    let url = proxy.url();
    let mut busy = Client::new(&url);
    busy.send(b"GET /x HTTP/1.1\r\n\r\n").unwrap();
    wait_until(|| proxy.requests().len() == 1);
    drop(proxy);
    assert!(idle.is_closed() && busy.is_closed());
    assert!(TcpStream::connect(url.strip_prefix("http://").unwrap()).is_err());
}
