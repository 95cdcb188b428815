//! Bytes pass, late if that is asked for, and are cut off at the byte.

use super::origin::{Client, Origin, content, wait_until};
use super::{Counts, TcpProxy};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

const MOMENT: Duration = Duration::from_millis(100);

/// A server, and a proxy before it that knows nothing of HTTP.
fn both() -> (Origin, TcpProxy) {
    let origin = Origin::start();
    let proxy = TcpProxy::start(origin.address);
    (origin, proxy)
}

#[test]
fn bytes_of_any_protocol_pass_and_are_counted() {
    let (origin, proxy) = both();
    let url = format!("http://{}", proxy.address());
    let mut client = Client::new(&url);
    let body = vec![3; 5 << 20];
    client.ask("PUT", "/x", &body).unwrap();
    assert_eq!(client.get("/bytes/3000000").unwrap().body, content(3_000_000));
    let counts = proxy.counts();
    assert_eq!(counts.connections, 1);
    assert!(counts.up > 5 << 20 && counts.up < (5 << 20) + 200, "{counts:?}");
    assert!(counts.down > 3_000_000 && counts.down < 3_000_200, "{counts:?}");
    // One side closes, and is still answered.
    client.send(b"GET /bytes/100 HTTP/1.1\r\n\r\n").unwrap();
    client.stream.get_ref().shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.answer("GET").unwrap().body, content(100));
    assert!(client.is_closed());
    proxy.set_latency(MOMENT);
    let mut client = Client::new(&url);
    let start = Instant::now();
    assert!(client.get("/bytes/3000000").unwrap().is_whole);
    assert!(start.elapsed() >= MOMENT && start.elapsed() < Duration::from_secs(30));
    assert_eq!(origin.done().len(), 4);
}

#[test]
fn a_client_that_goes_on_sending_is_cut_as_well() {
    let (_origin, proxy) = both();
    let client = Client::new(&format!("http://{}", proxy.address()));
    proxy.set_latency(20 * MOMENT);
    client.send(b"PUT /x HTTP/1.1\r\nContent-Length: 999999999\r\n\r\n").unwrap();
    let start = Instant::now();
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let much = vec![7; 1 << 20];
            (0..900).try_for_each(|_| client.send(&much))
        });
        std::thread::sleep(3 * MOMENT);
        proxy.cut_after(0);
        assert!(sending.join().unwrap().is_err());
    });
    assert!(start.elapsed() < Duration::from_secs(30));
}

#[test]
fn connections_are_cut_at_the_byte() {
    let (_origin, proxy) = both();
    let connect = || TcpStream::connect(proxy.address()).unwrap();
    let rest = |mut stream: TcpStream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).map(|_| all.len())
    };
    let ask =
        |mut stream: &TcpStream| stream.write_all(b"GET /bytes/1000 HTTP/1.1\r\n\r\n").unwrap();
    let (other, client) = (connect(), connect());
    wait_until(|| proxy.counts().connections == 2);
    proxy.cut_after(28 + 500);
    ask(&client);
    assert_eq!(rest(client).unwrap(), 500);
    assert_eq!(rest(other).unwrap(), 0);
    assert_eq!(proxy.counts(), Counts { connections: 2, up: 28, down: 500 });
    // Later ones work, until they do not.
    let client = connect();
    ask(&client);
    wait_until(|| proxy.counts().down > 1500);
    proxy.break_after(20);
    ask(&client);
    assert!(rest(client).unwrap() > 1000);
    assert_eq!(proxy.counts().up, 28 + 28 + 20);
    assert_eq!(rest(connect()).unwrap_or(0), 0);
    proxy.mend();
    let mut client = Client::new(&format!("http://{}", proxy.address()));
    assert!(client.get("/bytes/1000").unwrap().is_whole);
    proxy.break_after(0);
    assert!(client.is_closed());
    assert_eq!(rest(connect()).unwrap_or(0), 0);
}
