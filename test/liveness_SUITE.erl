%% Peers that die, stand still, restart or were never there: how the pool notices, and what becomes
%% of their messages. Each ends a real process or closes a real port.
-module(liveness_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1]).
-export([init_per_testcase/2, end_per_testcase/2]).
-export([
    a_closed_port_is_refused_at_once/1,
    a_peer_that_restarts_resets_the_connections_of_the_one_before_it/1,
    messages_to_a_node_that_fails_do_not_dial_it_each/1,
    a_caller_may_dial_at_once_during_the_back_off/1,
    messages_wait_for_the_end_of_a_short_back_off/1,
    another_address_is_dialled_at_once_during_the_back_off/1
]).

-define(POOL, macula_gateway_mesh).

suite() -> [{timetrap, {minutes, 2}}].

all() ->
    [
        a_closed_port_is_refused_at_once,
        a_peer_that_restarts_resets_the_connections_of_the_one_before_it,
        messages_to_a_node_that_fails_do_not_dial_it_each,
        a_caller_may_dial_at_once_during_the_back_off,
        messages_wait_for_the_end_of_a_short_back_off,
        another_address_is_dialled_at_once_during_the_back_off
    ].

init_per_suite(Config) ->
    Base = filename:join(proplists:get_value(priv_dir, Config), "node"),
    [{certificate, quic_certs:self_signed(Base)} | Config].

end_per_suite(_Config) -> ok.

init_per_testcase(_Name, Config) ->
    ok = mesh_ct:begin_test(),
    Config.

end_per_testcase(_Name, _Config) -> mesh_ct:end_test().

a_closed_port_is_refused_at_once(_Config) ->
    %% A node that is down while its machine is up need not cost every caller the whole time-out,
    %% which is a minute here.
    Pool = mesh_ct:start_pool(#{connect_timeout_ms => 60_000}),
    lists:foreach(
        fun(Ip) ->
            Port = closed_port(Ip),
            NodeId = term_to_binary(Ip),
            ?assertEqual(
                {error, {connect_failed, refused}},
                ?POOL:get_or_create_connection(Pool, NodeId, {Ip, Port})
            ),
            ?assertEqual({error, refused}, macula_quic:connect(Ip, Port, [], 60_000))
        end,
        [{127, 0, 0, 1}, {0, 0, 0, 0, 0, 0, 0, 1}]
    ),
    ?assertEqual(#{refused => 2}, mesh_ct:stat(dial_failures)).

a_peer_that_restarts_resets_the_connections_of_the_one_before_it(Config) ->
    %% A node that is restarted after a crash should get its messages at once, and not when the
    %% connections to its predecessor have run out of patience: here that takes a minute.
    Pool = mesh_ct:start_pool(#{idle_timeout_ms => 60_000}),
    {Vm, First} = start_node(Config, 0),
    Address = {{127, 0, 0, 1}, mesh_vm:call(Vm, old_node, port, [First])},
    {ok, Old} = ?POOL:get_or_create_connection(Pool, <<"node">>, Address),
    ok = macula_quic:send(Old, mesh_peer:frame(1, 8)),
    mesh_ct:poll_until(fun() -> mesh_ct:stat(messages_delivered) =:= 1 end),
    ok = mesh_vm:kill(Vm),
    {Successor, Node} = start_node(Config, element(2, Address)),
    %% The question of the pool that the successor cannot understand.
    ok = macula_quic:send(Old, mesh_peer:frame(2, 8)),
    mesh_ct:poll_until(fun() -> mesh_ct:stat(closes) =:= #{reset => 1} end),
    ?assertEqual({error, reset}, macula_quic:send(Old, <<"late">>)),
    ok = ?POOL:send_async(Pool, <<"node">>, Address, mesh_peer:frame(3, 8)),
    mesh_ct:poll_until(fun() -> notified(Successor, Node) =:= 1 end),
    mesh_ct:poll_until(fun() -> mesh_ct:stat(messages_delivered) =:= 2 end),
    ?assertEqual(1, mesh_ct:stat(messages_unconfirmed)),
    ok = peer:stop(Successor).

messages_to_a_node_that_fails_do_not_dial_it_each(_Config) ->
    %% A flood of messages to a node that is down must not become a flood of handshakes. This
    %% back-off is longer than a dial may take, so that no message waits for its end.
    Pool = start_pool_that_backs_off(60_000),
    Address = {{127, 0, 0, 1}, closed_port({127, 0, 0, 1})},
    ok = ?POOL:send_async(Pool, <<"node">>, Address, <<"refused">>),
    mesh_ct:poll_until(fun() -> mesh_ct:stat(failing) =:= 1 end),
    [ok = ?POOL:send_async(Pool, <<"node">>, Address, <<"dropped">>) || _ <- lists:seq(1, 1_000)],
    mesh_ct:poll_until(fun() ->
        mesh_ct:stat(messages_dropped) =:= #{refused => 1, backing_off => 1_000}
    end),
    ?assertEqual(1, mesh_ct:stat(dials)).

a_caller_may_dial_at_once_during_the_back_off(_Config) ->
    %% Whoever asks waits for the answer; and the first success is the end of the back-off.
    Pool = start_pool_that_backs_off(60_000),
    Port = closed_port({127, 0, 0, 1}),
    Address = {{127, 0, 0, 1}, Port},
    Refused = {error, {connect_failed, refused}},
    ?assertEqual(Refused, ?POOL:get_or_create_connection(Pool, <<"node">>, Address)),
    ?assertEqual(Refused, ?POOL:get_or_create_connection(Pool, <<"node">>, Address)),
    ?assertEqual(1, mesh_ct:stat(failing)),
    Peer = mesh_ct:start_peer(["--port", integer_to_list(Port)]),
    {ok, _} = ?POOL:get_or_create_connection(Pool, <<"node">>, Address),
    ?assertEqual(0, mesh_ct:stat(failing)),
    ok = ?POOL:remove_connection(Pool, <<"node">>),
    ok = ?POOL:send_async(Pool, <<"node">>, Address, mesh_peer:frame(0, 8)),
    ?assertMatch(#{distinct := 1}, mesh_peer:wait(Peer, messages, 1)).

messages_wait_for_the_end_of_a_short_back_off(_Config) ->
    %% A node that is restarted is back in seconds, and what was sent meanwhile need not be lost.
    %% Who asks for the connection ends the wait for the messages, too: here it would be long.
    Pool = start_pool_that_backs_off(30_000, #{connect_timeout_ms => 60_000}),
    Port = closed_port({127, 0, 0, 1}),
    Address = {{127, 0, 0, 1}, Port},
    {error, _} = ?POOL:get_or_create_connection(Pool, <<"node">>, Address),
    Frames = [mesh_peer:frame(N, 8) || N <- lists:seq(0, 9)],
    [ok = ?POOL:send_async(Pool, <<"node">>, Address, Frame) || Frame <- Frames],
    ?assertMatch({10, 1}, {mesh_ct:stat(outstanding_messages), mesh_ct:stat(dialing)}),
    ?assertEqual(1, mesh_ct:stat(dials)),
    Peer = mesh_ct:start_peer(["--port", integer_to_list(Port)]),
    {ok, _} = ?POOL:get_or_create_connection(Pool, <<"node">>, Address),
    ?assertMatch(#{distinct := 10}, mesh_peer:wait(Peer, messages, 10)),
    ?assertEqual(#{}, mesh_ct:stat(messages_dropped)).

another_address_is_dialled_at_once_during_the_back_off(_Config) ->
    %% The routing table has learned where the node is now.
    Pool = start_pool_that_backs_off(60_000),
    {error, _} = ?POOL:get_or_create_connection(
        Pool, <<"node">>, {{127, 0, 0, 1}, closed_port({127, 0, 0, 1})}
    ),
    Peer = mesh_ct:start_peer(),
    ok = ?POOL:send_async(Pool, <<"node">>, mesh_peer:address(Peer), mesh_peer:frame(0, 8)),
    ?assertMatch(#{distinct := 1}, mesh_peer:wait(Peer, messages, 1)).

%%% Internal

start_pool_that_backs_off(Ms) -> start_pool_that_backs_off(Ms, #{}).

start_pool_that_backs_off(Ms, Options) ->
    mesh_ct:start_pool(Options#{dial_backoff_min_ms => Ms, dial_backoff_max_ms => Ms}).

%% A VM, and a node in it that listens at this port with the suite's certificate.
start_node(Config, Port) ->
    {CertFile, KeyFile} = proplists:get_value(certificate, Config),
    Vm = mesh_vm:start(),
    Options = [{certfile, CertFile}, {keyfile, KeyFile}],
    {ok, Node} = mesh_vm:call(Vm, old_node, start, [1_000, Port, Options]),
    {Vm, Node}.

closed_port(Ip) ->
    {ok, Socket} = gen_udp:open(0, [{ip, Ip}, family(Ip)]),
    {ok, Port} = inet:port(Socket),
    ok = gen_udp:close(Socket),
    Port.

family(Ip) when tuple_size(Ip) =:= 4 -> inet;
family(_Ip) -> inet6.

notified(Vm, Node) ->
    maps:get(notifications, mesh_vm:call(Vm, old_node, counts, [Node]), 0).
