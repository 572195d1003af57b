#!/usr/bin/env escript
%% -*- erlang -*-

%%% The second part of `make demo': two BEAM nodes, each an OS process of its own. One listens with
%%% `macula_quic' and handles its events in one process, as nodes of macula do; the other pools the
%%% connection to it, sends, and asks. Certificate and key are made for this run and never written
%%% to a file. Every figure that it prints was counted or timed during this run.
%%%
%%% The exit code is 0 only when every message arrived once and every request was answered once.
%%%
%%% The environment: ERL_LIBS leads to the application.
-mode(compile).

-include_lib("public_key/include/public_key.hrl").

-define(NOTICES, 20_000).
-define(REQUESTS, 1_000).
%% The second byte of a protocol frame says what it is; these kinds are the demo's own.
-define(NOTICE, 1).
-define(REQUEST, 2).
-define(ANSWER, 3).
%% RFC 5480, section 2.1.1.1.
-define(P256, {1, 2, 840, 10045, 3, 1, 7}).
-define(MAX_LINE, 65_536).
%% The sender looks so often at what is outstanding, and waits above so much.
-define(BATCH, 500).
-define(MAX_OUTSTANDING, 8_000).
-define(POLL_MS, 1).
-define(ANSWER_MS, 8_000).
-define(WHOLE_RUN_MS, 20_000).

main(["listen"]) ->
    listen();
main([]) ->
    _ = spawn_link(fun watchdog/0),
    ok = logger:set_primary_config(level, error),
    try run() of
        ok -> halt(0)
    catch
        throw:{failed, Word} -> fail(Word);
        Class:Reason:Stack -> fail(io_lib:format("~p", [{Class, Reason, Stack}]))
    end.

%%% The node that pools and sends

run() ->
    Started = now_ms(),
    #{cert := Cert} = Identity = identity(),
    NodeId = crypto:hash(sha256, public_key_info(Cert)),
    {Port, UdpPort, OsPid} = start_listener(Identity),
    Address = {{127, 0, 0, 1}, UdpPort},
    say("~nTwo BEAM nodes: this one, pid ~ts, pools; pid ~ts listens on port ~b.", [
        os:getpid(), OsPid, UdpPort
    ]),
    {ok, Pool} = macula_gateway_mesh:start_link(#{verify => {node_id, spki_sha256}}),
    show_identity(Pool, NodeId, Address),
    {ok, #{connection := Conn}} = macula_gateway_mesh:get_connection_info(Pool, NodeId),
    ok = show_requests(Conn),
    ok = show_notices(Pool, NodeId, Address),
    Seen = await_seen(Port, now_ms() + ?ANSWER_MS),
    ok = show_seen(Seen),
    ok = macula_gateway_mesh:stop(Pool),
    ok = ask(Port, "quit"),
    conclude(Seen, now_ms() - Started).

%% A node id is the hash of the node's key here, and the pool checks that.
show_identity(Pool, NodeId, Address) ->
    Other = crypto:hash(sha256, <<"somebody else">>),
    case macula_gateway_mesh:get_or_create_connection(Pool, Other, Address) of
        {error, {connect_failed, {unverified, wrong_key}} = Reason} ->
            say("Asked for another node at its address: {error, ~w}.", [Reason]);
        Wrong ->
            failed("a node with another key was to be refused: ~p", [Wrong])
    end,
    {ok, _Stream} = macula_gateway_mesh:get_or_create_connection(Pool, NodeId, Address),
    say("Asked for it by its own id: connected, verified by the key behind that id.~n", []).

%% Each on a stream of its own, which is answered on that stream.
show_requests(Conn) ->
    {Us, _} = timer:tc(fun() -> [request(Conn, Index) || Index <- lists:seq(1, ?REQUESTS)] end),
    say("~b requests, one after the other, each answered on its stream: ~b us each.", [
        ?REQUESTS, Us div ?REQUESTS
    ]).

request(Conn, Index) ->
    {ok, Stream} = macula_quic:open_stream(Conn),
    ok = macula_quic:send(Stream, frame(?REQUEST, Index)),
    Answer = frame(?ANSWER, Index),
    case macula_quic:recv(Stream, ?ANSWER_MS) of
        {ok, Answer} -> macula_quic:close(Stream);
        Wrong -> failed("request ~b: ~p", [Index, Wrong])
    end.

show_notices(Pool, NodeId, Address) ->
    Begin = now_ms(),
    Send = fun(Index) ->
        Index rem ?BATCH =:= 0 andalso await_outstanding(Pool, ?MAX_OUTSTANDING),
        macula_gateway_mesh:send_async(Pool, NodeId, Address, frame(?NOTICE, Index))
    end,
    ok = lists:foreach(Send, lists:seq(1, ?NOTICES)),
    await_outstanding(Pool, 0),
    Ms = max(1, now_ms() - Begin),
    say("~b notices by send_async/4, all acknowledged after ~b ms: ~b per second.~n", [
        ?NOTICES, Ms, ?NOTICES * 1_000 div Ms
    ]).

await_outstanding(Pool, AtMost) ->
    case macula_gateway_mesh:get_stats(Pool) of
        {ok, #{outstanding_messages := Outstanding}} when Outstanding =< AtMost ->
            true;
        {ok, _} ->
            timer:sleep(?POLL_MS),
            await_outstanding(Pool, AtMost)
    end.

%% What the transport has acknowledged, the process there may have yet to get.
await_seen(Port, Deadline) ->
    Seen = #{notices := Notices} = ask(Port, "report"),
    case Notices >= ?NOTICES orelse now_ms() > Deadline of
        true ->
            Seen;
        false ->
            timer:sleep(?POLL_MS),
            await_seen(Port, Deadline)
    end.

show_seen(#{notices := Notices, distinct := Distinct, requests := Requests} = Seen) ->
    #{connections := Connections, streams := Streams, alpn := Alpn} = Seen,
    say("What the listening node counted, in one process, by the messages that it got:", []),
    say("  ~b connections, of which the pool has refused one; protocol ~ts; ~b streams;", [
        Connections, Alpn, Streams
    ]),
    say("  ~b requests answered; ~b notices, ~b distinct.~n", [Requests, Notices, Distinct]).

conclude(#{notices := ?NOTICES, distinct := ?NOTICES, requests := ?REQUESTS}, Ms) ->
    say("Every notice arrived once, every request was answered once. ~.1f s in all.", [Ms / 1_000]);
conclude(Seen, _Ms) ->
    failed("sent ~b notices and ~b requests, but: ~p", [?NOTICES, ?REQUESTS, Seen]).

%% A certificate and its key, made for this run.
identity() ->
    Key = [{digest, sha256}, {key, {namedCurve, ?P256}}],
    Chain = #{root => Key, intermediates => [], peer => Key},
    #{server_config := Config} =
        public_key:pkix_test_data(#{server_chain => Chain, client_chain => Chain}),
    {cert, Cert} = lists:keyfind(cert, 1, Config),
    {key, {_Type, KeyDer}} = lists:keyfind(key, 1, Config),
    #{cert => Cert, key => KeyDer}.

%% The SubjectPublicKeyInfo of a certificate (RFC 5280, section 4.1.2.7).
public_key_info(Cert) ->
    #'Certificate'{tbsCertificate = #'TBSCertificate'{subjectPublicKeyInfo = Info}} =
        public_key:pkix_decode_cert(Cert, plain),
    public_key:der_encode('SubjectPublicKeyInfo', Info).

start_listener(Identity) ->
    Options = [{args, [escript:script_name(), "listen"]}, {line, ?MAX_LINE}, binary, exit_status],
    Port = open_port({spawn_executable, os:find_executable("escript")}, Options),
    {ready, UdpPort, OsPid} = ask(Port, base64:encode(term_to_binary(Identity))),
    {Port, UdpPort, OsPid}.

%% The listening node answers each line with one term.
ask(Port, Line) ->
    true = port_command(Port, [Line, "\n"]),
    receive
        {Port, {data, {eol, Answer}}} ->
            {ok, Tokens, _} = erl_scan:string(binary_to_list(Answer)),
            {ok, Term} = erl_parse:parse_term(Tokens),
            Term;
        {Port, {exit_status, Status}} ->
            failed("the listening node ended with ~b", [Status])
    after ?ANSWER_MS ->
        failed("the listening node does not answer", [])
    end.

%%% The node that listens: one process gets all events, another reads its orders.

listen() ->
    #{cert := Cert, key := Key} = binary_to_term(base64:decode(order())),
    Server = spawn_link(fun() -> serve([{cert, Cert}, {key, Key}]) end),
    answer({ready, call(Server, port), os:getpid()}),
    obey(Server).

obey(Server) ->
    case order() of
        "report" ->
            answer(call(Server, report)),
            obey(Server);
        _QuitOrEof ->
            answer(ok),
            halt(0)
    end.

order() ->
    case io:get_line("") of
        Line when is_list(Line) -> string:trim(Line);
        _Eof -> "quit"
    end.

answer(Term) -> io:format("~0p.~n", [Term]).

call(Server, Question) ->
    Server ! {self(), Question},
    receive
        {Server, Answer} -> Answer
    end.

serve(Options) ->
    {ok, Listener} = macula_quic:listen({{127, 0, 0, 1}, 0}, Options),
    {ok, Listener} = macula_quic:async_accept(Listener, #{}),
    Seen = #{connections => 0, streams => 0, requests => 0, notices => 0, alpn => "none"},
    serve(Listener, Seen, #{}).

serve(Listener, Seen, Indices) ->
    receive
        {quic, new_conn, Conn, #{alpn := Alpn}} ->
            _ = take_in(Conn),
            {ok, Listener} = macula_quic:async_accept(Listener, #{}),
            Counted = count(connections, Seen),
            serve(Listener, Counted#{alpn := binary_to_list(Alpn)}, Indices);
        {quic, new_stream, Stream, #{conn := Conn}} ->
            {ok, Conn} = macula_quic:async_accept_stream(Conn, #{}),
            ok = macula_quic:setopt(Stream, active, true),
            serve(Listener, count(streams, Seen), Indices);
        {quic, <<1, ?NOTICE, 0, 0, 8:32, Index:64>>, _Stream, _} ->
            serve(Listener, count(notices, Seen), Indices#{Index => true});
        {quic, <<1, ?REQUEST, 0, 0, 8:32, Index:64>>, Stream, _} ->
            ok = macula_quic:send(Stream, frame(?ANSWER, Index)),
            serve(Listener, count(requests, Seen), Indices);
        {quic, peer_send_shutdown, Stream, _} ->
            ok = macula_quic:close_stream(Stream),
            serve(Listener, Seen, Indices);
        {quic, _What, _Handle, _} ->
            serve(Listener, Seen, Indices);
        {From, port} ->
            {ok, {_Ip, Port}} = macula_quic:sockname(Listener),
            From ! {self(), Port},
            serve(Listener, Seen, Indices);
        {From, report} ->
            From ! {self(), Seen#{distinct => map_size(Indices)}},
            serve(Listener, Seen, Indices)
    end.

%% A pool that has not found the node that it asked for may be gone already.
take_in(Conn) ->
    case macula_quic:handshake(Conn) of
        {ok, Conn} -> macula_quic:async_accept_stream(Conn, #{});
        {error, closed} -> closed
    end.

count(Key, Seen) -> maps:update_with(Key, fun(N) -> N + 1 end, Seen).

%%% Both

%% A frame of the mesh protocol.
frame(Kind, Index) -> <<1, Kind, 0, 0, 8:32, Index:64>>.

watchdog() ->
    timer:sleep(?WHOLE_RUN_MS),
    fail("it took too long").

failed(Format, Args) ->
    throw({failed, io_lib:format(Format, Args)}).

fail(Word) ->
    io:format(standard_error, "~ndemo FAILED: ~ts~n", [Word]),
    halt(1).

say(Format, Args) -> io:format(Format ++ "~n", Args).

now_ms() -> erlang:monotonic_time(millisecond).
