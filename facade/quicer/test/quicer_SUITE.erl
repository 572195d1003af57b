%%% The facade on real sockets, in both roles, called the way macula nodes call quicer.
-module(quicer_SUITE).

-include_lib("stdlib/include/assert.hrl").
-include("../include/quicer.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1]).
-export([
    serves_clients_in_event_style/1,
    serves_clients_in_blocking_style/1,
    reads_a_passive_stream/1,
    listens_at_one_address/1,
    tells_why_a_dial_has_failed/1,
    takes_options_as_maps_and_lists/1,
    refuses_what_it_cannot_do/1,
    hands_a_stream_over_while_data_arrives/1,
    hands_nothing_to_the_dead/1,
    hands_a_connection_over/1,
    closes_connections_with_a_code/1,
    shuts_streams_down/1,
    finishes_a_stream_with_its_last_data/1,
    closes_listeners/1,
    answers_questions/1,
    answers_badarg_to_what_is_no_handle/1,
    answers_badarg_to_what_is_of_no_use/1,
    takes_no_stream_for_options_of_no_use/1
]).

%% RFC 5480, section 2.1.1.1.
-define(P256, {1, 2, 840, 10045, 3, 1, 7}).
-define(WAIT, 5_000).
-define(SILENCE, 200).
-define(HANDOFFS, 50).
-define(CHUNK, 40_000).

suite() -> [{timetrap, {seconds, 60}}].

all() -> [Name || {Name, 1} <- ?MODULE:module_info(exports), is_test(Name)].

is_test(Name) -> not lists:member(Name, [init_per_suite, end_per_suite, module_info]).

init_per_suite(Config) ->
    {ok, _} = application:ensure_all_started(quicer),
    Key = [{digest, sha256}, {key, {namedCurve, ?P256}}],
    Chain = #{root => Key, intermediates => [], peer => Key},
    #{server_config := Server} =
        public_key:pkix_test_data(#{server_chain => Chain, client_chain => Chain}),
    {cert, Cert} = lists:keyfind(cert, 1, Server),
    {key, {Type, Der}} = lists:keyfind(key, 1, Server),
    CertFile = pem(Config, "cert.pem", 'Certificate', Cert),
    KeyFile = pem(Config, "key.pem", Type, Der),
    [{certfile, CertFile}, {keyfile, KeyFile}, {cert, Cert}, {key, Der} | Config].

end_per_suite(_Config) -> ok.

pem(Config, Name, Type, Der) ->
    File = filename:join(proplists:get_value(priv_dir, Config), Name),
    ok = file:write_file(File, public_key:pem_encode([{Type, Der, not_encrypted}])),
    File.

%% What a node's listening process does, step by step.
serves_clients_in_event_style(Config) ->
    {Listener, Port} = listen(Config),
    {ok, Listener} = quicer:async_accept(Listener, #{}),
    Client = dial(Port),
    Server = receive_event(new_conn),
    ?assertEqual({ok, Server}, quicer:handshake(Server)),
    {ok, Server} = quicer:async_accept_stream(Server, #{}),
    {ok, Ours} = quicer:start_stream(Client, []),
    ?assertEqual({ok, 12}, quicer:send(Ours, [frame(<<"ping">>)])),
    {Theirs, #{conn := Server, flags := 0}} = receive_detail(new_stream),
    ok = quicer:setopt(Theirs, active, true),
    Frame = frame(<<"ping">>),
    {Frame, #{absolute_offset := 0, len := 12}} = receive_data(Theirs),
    ?assertEqual({ok, 12}, quicer:async_send(Theirs, frame(<<"pong">>))),
    %% A stream that start_stream/2 has opened is active.
    {Pong, _} = receive_data(Ours),
    ?assertEqual(frame(<<"pong">>), Pong).

serves_clients_in_blocking_style(Config) ->
    {Listener, Port} = listen(Config),
    ?assertEqual({error, timeout}, quicer:accept(Listener, #{active => false}, 10)),
    Client = dial(Port),
    {ok, Server} = quicer:accept(Listener, []),
    ?assertEqual({ok, Server}, quicer:handshake(Server, ?WAIT)),
    ?assertEqual({error, timeout}, quicer:accept_stream(Server, #{}, 10)),
    {ok, Ours} = quicer:start_stream(Client, #{start_flag => 0, open_flag => 0}),
    {ok, 4} = quicer:send(Ours, <<"text">>),
    {ok, Theirs} = quicer:accept_stream(Server, [{active, true}]),
    ?assertMatch({<<"text">>, _}, receive_data(Theirs)),
    {ok, 4} = quicer:send(Theirs, <<"echo">>, ?QUIC_SEND_FLAG_NONE),
    ?assertMatch({<<"echo">>, _}, receive_data(Ours)),
    %% Only so many messages, then one that says so.
    ok = quicer:setopt({Client, Ours}, active, 1),
    {ok, 4} = quicer:send(Theirs, <<"more">>),
    ?assertMatch({<<"more">>, _}, receive_data(Ours)),
    undefined = receive_detail(passive, Ours).

reads_a_passive_stream(Config) ->
    #{client := Client, server := Server} = pair(Config),
    {ok, Ours} = quicer:start_stream(Client, #{active => false}),
    {ok, 3} = quicer:send(Ours, <<"one">>),
    {ok, Theirs} = quicer:accept_stream(Server, #{active => false}, ?WAIT),
    ?assertEqual({ok, <<"one">>}, quicer:recv(Theirs, 0)),
    ?assertEqual({error, not_supported}, quicer:recv(Theirs, 3)),
    ok = quicer:async_shutdown_stream(Ours, ?QUIC_STREAM_SHUTDOWN_FLAG_ABORT_SEND, 7),
    ?assertEqual({error, peer_send_aborted}, quicer:recv(Theirs, 0)).

listens_at_one_address(Config) ->
    {ok, Listener} = quicer:listen("127.0.0.1:0", tls_files(Config)),
    {ok, {{127, 0, 0, 1}, Port}} = quicer:sockname(Listener),
    {ok, _} = quicer:connect({127, 0, 0, 1}, Port, [{verify, none}], ?WAIT),
    {ok, V6} = quicer:listen(<<"[::1]:0">>, tls_files(Config)),
    ?assertMatch({ok, {{0, 0, 0, 0, 0, 0, 0, 1}, _}}, quicer:sockname(V6)),
    [?assertEqual({error, badarg}, quicer:listen(On, tls_files(Config)))
        || On <- ["nonsense", "host.example:1", "127.0.0.1:port", atom, {{1, 2}, 3}]].

tells_why_a_dial_has_failed(Config) ->
    {_Listener, Port} = listen(Config),
    {ok, Silent} = gen_udp:open(0, [{ip, {127, 0, 0, 1}}]),
    {ok, SilentPort} = inet:port(Silent),
    ?assertMatch(
        {error, transport_down, #{status := connection_timeout, error := undefined}},
        quicer:connect("127.0.0.1", SilentPort, [{verify, none}], ?SILENCE)
    ),
    ?assertMatch(
        {error, transport_down, #{status := alpn_neg_failure, error := 376}},
        quicer:connect("127.0.0.1", Port, [{alpn, ["other"]}, {verify, none}], ?WAIT)
    ),
    ?assertMatch(
        {error, transport_down, #{status := Status, reason := {unverified, _}}} when
            Status =:= cert_untrusted_root; Status =:= bad_certificate,
        quicer:connect("127.0.0.1", Port, #{verify => peer}, infinity)
    ),
    ?assertMatch(
        {error, transport_down, #{status := not_found, reason := nxdomain}},
        quicer:connect("no-such-host.invalid", Port, [{verify, none}], ?WAIT)
    ),
    ?assertMatch(
        {error, {bad_option, idle_timeout_ms, 0}},
        quicer:connect("127.0.0.1", Port, #{idle_timeout_ms => 0}, ?WAIT)
    ),
    ?assertEqual(
        {error, {unknown_option, realm}}, quicer:connect("127.0.0.1", Port, [{realm, x}], ?WAIT)
    ).

takes_options_as_maps_and_lists(Config) ->
    Der = [{cert, config(cert, Config)}, {key, config(key, Config)}],
    Common = [
        {alpn, ["macula-dist"]}, {idle_timeout_ms, 60_000}, {peer_bidi_stream_count, 10},
        {peer_unidi_stream_count, 10}
    ],
    Ours = [{stream_recv_window_default, 65_536}, {allow_insecure, false},
        {fail_if_no_peer_cert, false} | Common],
    {ok, Listener} = quicer:listen(0, maps:from_list(Der ++ Ours)),
    {ok, {_, Port}} = quicer:sockname(Listener),
    [?assertMatch({ok, _}, quicer:connect(Host, Port, Options, ?WAIT))
        || Host <- ["127.0.0.1", <<"127.0.0.1">>, "::1"],
           Options <- [
               [{verify, none} | Ours],
               maps:from_list([{verify, verify_none}, {keep_alive_interval_ms, 0} | Common])
           ]],
    %% A client certificate that may be absent is not to be had.
    Optional = [{verify, verify_peer}, {cacertfile, config(certfile, Config)},
        {fail_if_no_peer_cert, false} | Der],
    ?assertEqual({error, {bad_option, fail_if_no_peer_cert, false}}, quicer:listen(0, Optional)).

refuses_what_it_cannot_do(Config) ->
    #{client := Client, server := Server} = pair(Config),
    [?assertMatch({error, {unknown_option, _}}, quicer:connect("::1", 1, [Option], ?WAIT))
        || Option <- [{allow_insecure, true}, {custom_verify, true}, {nst, <<>>}, {handle, x},
               {sslkeylogfile, "keys"}, {password, "secret"}, {datagram_receive_enabled, 1}]],
    ?assertEqual(
        {error, stream_open_error, not_supported},
        quicer:start_stream(Client, #{open_flag => ?QUIC_STREAM_OPEN_FLAG_UNIDIRECTIONAL})
    ),
    ?assertEqual(
        {error, stream_start_error, not_supported}, quicer:start_stream(Client, #{start_flag => 2})
    ),
    ?assertEqual(
        {error, {unknown_option, quic_event_mask}},
        quicer:start_stream(Client, [{quic_event_mask, 1}])
    ),
    ?assertEqual({error, badarg}, quicer:start_stream(Client, [{active, sometimes}])),
    ?assertEqual(
        {error, {bad_option, active, true}}, quicer:async_accept_stream(Server, #{active => true})
    ),
    {ok, Server} = quicer:async_accept_stream(Server, [{active, false}]),
    {ok, Server} = quicer:async_accept_stream(Server),
    {ok, Stream} = quicer:start_stream(Client, []),
    ?assertEqual({error, not_supported}, quicer:send(Stream, <<>>, 16#20)),
    ?assertEqual(
        {error, not_supported}, quicer:async_send(Stream, <<>>, ?QUICER_SEND_FLAG_SYNC)
    ),
    ?assertEqual({error, not_supported}, quicer:setopt(Client, param_conn_settings, #{})),
    ?assertEqual({error, not_supported}, quicer:getopt(Stream, active)).

%% The stream goes from process to process while its data arrives; each sends what it got.
hands_a_stream_over_while_data_arrives(Config) ->
    #{client := Client, server := Server} = pair(Config),
    {ok, Ours} = quicer:start_stream(Client, []),
    Data = crypto:strong_rand_bytes(?HANDOFFS * ?CHUNK),
    Sender = spawn_link(fun() ->
        [{ok, ?CHUNK} = quicer:send(Ours, binary:part(Data, N * ?CHUNK, ?CHUNK))
            || N <- lists:seq(0, ?HANDOFFS - 1)],
        ok = quicer:async_shutdown_stream(Ours),
        receive stop -> ok end
    end),
    {ok, Theirs} = quicer:accept_stream(Server, #{active => false}, ?WAIT),
    ok = quicer:setopt(Theirs, packet, raw),
    ok = quicer:setopt(Theirs, active, true),
    %% To oneself, nothing moves.
    ok = quicer:handoff_stream(Theirs, self()),
    ?assertEqual(undefined, handed_over(Theirs)),
    Self = self(),
    First = spawn_link(fun() -> relay(Self, Theirs, ?HANDOFFS) end),
    ok = quicer:handoff_stream(Theirs, First, []),
    Received =
        receive
            {received, Parts} -> iolist_to_binary(lists:reverse(Parts))
        after ?WAIT -> error(no_data)
        end,
    ?assertEqual(byte_size(Data), byte_size(Received)),
    ?assertEqual(Data, Received),
    Sender ! stop.

relay(To, Stream, Left) ->
    Parts = handed_over(Stream),
    relay(To, Stream, Left, Parts).

relay(To, Stream, Left, Parts) ->
    receive
        {quic, Data, Stream, _} when is_binary(Data), Left > 0 ->
            Next = spawn_link(fun() -> relay(To, Stream, Left - 1) end),
            ok = quicer:handoff_stream(Stream, Next, [Data | Parts]);
        {quic, Data, Stream, _} when is_binary(Data) ->
            relay(To, Stream, Left, [Data | Parts]);
        {quic, peer_send_shutdown, Stream, _} ->
            To ! {received, Parts}
    end.

handed_over(Stream) ->
    receive
        {handoff_done, Stream, Data} -> Data
    after ?WAIT -> error(no_handoff)
    end.

hands_nothing_to_the_dead(Config) ->
    #{client := Client} = pair(Config),
    {ok, Stream} = quicer:start_stream(Client, []),
    {Dead, Monitor} = spawn_monitor(fun() -> ok end),
    receive {'DOWN', Monitor, process, Dead, _} -> ok end,
    ?assertEqual({error, owner_down}, quicer:handoff_stream(Stream, Dead)),
    ?assertEqual({error, owner_dead}, quicer:controlling_process(Stream, Dead)),
    %% It is still ours.
    ?assertEqual(ok, quicer:controlling_process(Stream, keeper())),
    ?assertEqual({error, not_owner}, quicer:handoff_stream(Stream, keeper())).

hands_a_connection_over(Config) ->
    #{client := Client, server := Server} = pair(Config),
    Self = self(),
    Owner = spawn_link(fun() ->
        receive {quic, shutdown, Server, Code} -> Self ! {told, Code} end
    end),
    ok = quicer:controlling_process(Server, Owner),
    ok = quicer:async_shutdown_connection(Client, ?QUIC_CONNECTION_SHUTDOWN_FLAG_NONE, 5),
    receive {told, Code} -> ?assertEqual(5, Code) after ?WAIT -> error(not_told) end.

closes_connections_with_a_code(Config) ->
    Closings = [
        {0, fun quicer:close_connection/1},
        {0, fun(Conn) -> quicer:close_connection(Conn, ?WAIT) end},
        {3, fun(Conn) -> quicer:close_connection(Conn, 0, 3) end},
        {4, fun(Conn) -> quicer:close_connection(Conn, 1, 4, ?WAIT) end},
        {0, fun quicer:shutdown_connection/1},
        {0, fun(Conn) -> quicer:shutdown_connection(Conn, ?WAIT) end},
        {5, fun(Conn) -> quicer:shutdown_connection(Conn, 0, 5) end},
        {6, fun(Conn) -> quicer:shutdown_connection(Conn, 0, 6, ?WAIT) end}
    ],
    [closes(Config, Code, Close) || {Code, Close} <- Closings].

closes(Config, Code, Close) ->
    #{client := Client, server := Server} = pair(Config),
    ?assertEqual(ok, Close(Client)),
    ?assertEqual(Code, receive_detail(shutdown, Server)),
    ?assertMatch(#{is_app_closing := false}, receive_detail(closed, Server)),
    %% Nobody waits for what has been told already.
    ?assertEqual({error, closed}, Close(Client)).

shuts_streams_down(Config) ->
    Conns = pair(Config),
    {A, ATheirs} = streams(Conns),
    ok = quicer:async_shutdown_stream(A),
    undefined = receive_detail(peer_send_shutdown, ATheirs),
    ?assertEqual({error, timeout}, quicer:shutdown_stream(A, 50)),
    ok = quicer:shutdown_stream(ATheirs),
    {B, BTheirs} = streams(Conns),
    ok = quicer:shutdown_stream(B, ?QUIC_STREAM_SHUTDOWN_FLAG_ABORT bor 8, 9, ?WAIT),
    ?assertEqual(9, receive_detail(peer_send_aborted, BTheirs)),
    {C, CTheirs} = streams(Conns),
    ok = quicer:shutdown_stream(C, ?QUIC_STREAM_SHUTDOWN_FLAG_IMMEDIATE, 2),
    ?assertEqual(2, receive_detail(peer_send_aborted, CTheirs)),
    [closes_stream(Conns, Close) || Close <- [
        fun quicer:close_stream/1,
        fun(Stream) -> quicer:close_stream(Stream, ?WAIT) end,
        fun(Stream) -> quicer:close_stream(Stream, 1, 0) end,
        fun(Stream) -> quicer:close_stream(Stream, 1, 0, ?WAIT) end
    ]].

closes_stream(Conns, Close) ->
    {Ours, Theirs} = streams(Conns),
    {ok, 4} = quicer:async_send(Ours, <<"last">>),
    ok = Close(Ours),
    ?assertMatch({<<"last">>, _}, receive_data(Theirs)),
    undefined = receive_detail(peer_send_shutdown, Theirs).

finishes_a_stream_with_its_last_data(Config) ->
    {Ours, Theirs} = streams(pair(Config)),
    ?assertEqual({ok, 4}, quicer:send(Ours, <<"last">>, ?QUIC_SEND_FLAG_FIN)),
    ?assertMatch({<<"last">>, _}, receive_data(Theirs)),
    undefined = receive_detail(peer_send_shutdown, Theirs),
    ?assertMatch({error, closed}, quicer:async_send(Ours, <<"late">>, ?QUIC_SEND_FLAG_FIN)).

closes_listeners(Config) ->
    {A, PortA} = listen(Config),
    {B, PortB} = listen(Config),
    ok = quicer:close_listener(A),
    ok = quicer:close_listener(B, ?WAIT),
    [?assertMatch({error, transport_down, #{}}, quicer:connect("::1", Port, [], ?SILENCE))
        || Port <- [PortA, PortB]],
    ?assertEqual({error, closed}, quicer:accept(A, [], ?WAIT)).

answers_questions(Config) ->
    #{client := Client, server := Server, port := Port} = Conns = pair(Config),
    {Ours, _Theirs} = streams(Conns),
    {ok, {Ip, Port}} = quicer:peername(Client),
    ?assertEqual({ok, {Ip, Port}}, quicer:peername(Ours)),
    ?assertEqual({ok, {Ip, Port}}, quicer:getopt(Client, remote_address)),
    ?assertMatch({ok, {_, _}}, quicer:getopt(Client, param_conn_local_address, false)),
    ?assertMatch({ok, {_, Port}}, quicer:sockname(Server)),
    {ok, [{send_cnt, Sent}, {recv_oct, Received}]} = quicer:getstat(Client, [send_cnt, recv_oct]),
    ?assert(Sent > 0 andalso Received > 0),
    ?assertEqual({error, {unknown_key, recv_avg}}, quicer:getstat(Client, [recv_avg])).

%% quicer answers so, and nodes try one kind of handle after the other.
answers_badarg_to_what_is_no_handle(_Config) ->
    None = make_ref(),
    Calls = [
        fun quicer:close_listener/1, fun quicer:handshake/1, fun quicer:close_connection/1,
        fun quicer:close_stream/1, fun quicer:async_shutdown_stream/1, fun quicer:peername/1,
        fun quicer:sockname/1, fun quicer:async_accept_stream/1,
        fun(H) -> quicer:accept(H, [], 10) end, fun(H) -> quicer:async_accept(H, #{}) end,
        fun(H) -> quicer:accept_stream(H, [], 10) end, fun(H) -> quicer:start_stream(H, []) end,
        fun(H) -> quicer:send(H, <<>>) end, fun(H) -> quicer:async_send(H, <<>>) end,
        fun(H) -> quicer:recv(H, 0) end, fun(H) -> quicer:setopt(H, active, true) end,
        fun(H) -> quicer:getstat(H, []) end,
        fun(H) -> quicer:controlling_process(H, keeper()) end,
        fun(H) -> quicer:controlling_process(H, self()) end,
        fun(H) -> quicer:handoff_stream(H, self()) end
    ],
    [?assertEqual({error, badarg}, Call(None)) || Call <- Calls],
    receive
        {handoff_done, _, _} = Message -> error({unexpected, Message})
    after 0 -> ok
    end.

%% A node that matches errors does not expect exceptions.
answers_badarg_to_what_is_of_no_use(Config) ->
    #{client := Client, server := Server} = pair(Config),
    {Listener, _Port} = listen(Config),
    {ok, Stream} = quicer:start_stream(Client, []),
    Elsewhere = binary_to_term(<<131, 88, 119, 3, "a@b", 1:32, 0:32, 1:32>>),
    Answers = [
        quicer:controlling_process(Stream, Elsewhere),
        quicer:controlling_process(Client, Elsewhere),
        quicer:controlling_process(Stream, nobody),
        quicer:handoff_stream(Stream, Elsewhere),
        quicer:accept(Listener, [], soon),
        quicer:accept_stream(Server, [], -1),
        quicer:getstat(Client, [send_cnt | recv_cnt]),
        quicer:async_shutdown_connection(Client, 0, -1),
        quicer:async_shutdown_connection(Client, 0, abnormal),
        quicer:connect("localhost", 1, [], soon),
        quicer:connect("localhost", 1, [], -1),
        quicer:send(Stream, no_data),
        quicer:async_send(Stream, [no_data]),
        quicer:shutdown_stream(Stream, 1, 0, -1),
        quicer:shutdown_connection(Client, 0, 0, soon)
    ],
    ?assertEqual([{error, badarg} || _ <- Answers], Answers),
    Flags = [quicer:send(Stream, <<>>, fin), quicer:async_send(Stream, <<>>, fin)],
    ?assertEqual([{error, not_supported}, {error, not_supported}], Flags),
    %% And nothing has been done.
    ?assertEqual({ok, 4}, quicer:send(Stream, <<"data">>)).

%% A stream that is taken and closed for a mistake in the options is a request lost.
takes_no_stream_for_options_of_no_use(Config) ->
    #{client := Client, server := Server} = pair(Config),
    {ok, Ours} = quicer:start_stream(Client, []),
    {ok, 3} = quicer:send(Ours, <<"one">>),
    [?assertEqual({error, badarg}, quicer:accept_stream(Server, [Option], ?WAIT))
        || Option <- [{active, bogus}, {active, 0}, {active, 65_536}, {packet, line}]],
    {ok, Theirs} = quicer:accept_stream(Server, [{active, false}, {packet, raw}], ?WAIT),
    ?assertEqual({ok, <<"one">>}, quicer:recv(Theirs, 0)).

%%% Help

tls_files(Config) ->
    [{certfile, config(certfile, Config)}, {keyfile, config(keyfile, Config)}].

config(Key, Config) -> proplists:get_value(Key, Config).

listen(Config) ->
    {ok, Listener} = quicer:listen(0, tls_files(Config)),
    {ok, {_, Port}} = quicer:sockname(Listener),
    %% For as long as the test lasts: the collector takes what is not named any more, and closes it.
    _ = put(Port, Listener),
    {Listener, Port}.

dial(Port) ->
    {ok, Conn} = quicer:connect("127.0.0.1", Port, [{verify, none}], ?WAIT),
    Conn.

%% A connection, both ends of which belong to the caller.
pair(Config) ->
    {Listener, Port} = listen(Config),
    Client = dial(Port),
    {ok, Server} = quicer:accept(Listener, [], ?WAIT),
    #{listener => Listener, port => Port, client => Client, server => Server}.

%% Both ends of an active stream.
streams(#{client := Client, server := Server}) ->
    {ok, Ours} = quicer:start_stream(Client, []),
    {ok, 5} = quicer:send(Ours, <<"first">>),
    {ok, Theirs} = quicer:accept_stream(Server, #{}, ?WAIT),
    ?assertMatch({<<"first">>, _}, receive_data(Theirs)),
    {Ours, Theirs}.

keeper() -> spawn(fun() -> receive after ?WAIT -> ok end end).

frame(Payload) -> <<1, 1, 0, 0, (byte_size(Payload)):32, Payload/binary>>.

receive_event(What) ->
    {Handle, _} = receive_detail(What),
    Handle.

receive_detail(What) ->
    receive
        {quic, What, Handle, Detail} -> {Handle, Detail}
    after ?WAIT -> error({no_message, What, process_info(self(), messages)})
    end.

receive_detail(What, Handle) ->
    receive
        {quic, What, Handle, Detail} -> Detail
    after ?WAIT -> error({no_message, What, process_info(self(), messages)})
    end.

receive_data(Stream) ->
    receive
        {quic, Data, Stream, Detail} when is_binary(Data) -> {Data, Detail}
    after ?WAIT -> error({no_data, process_info(self(), messages)})
    end.
