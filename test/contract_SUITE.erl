%%% What a node that ran the original `macula_gateway_mesh' relies on, with its exact terms. What
%%% start_link/1 takes is in options_SUITE, why dials fail in dial_SUITE, and what was to be better
%%% than the original in pool_SUITE, load_SUITE, fault_SUITE and identity_SUITE.
-module(contract_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(POOL, macula_gateway_mesh).
-define(DEFAULT_PORT, 4433).
%% A dial that is still under way when the test has ended.
-define(LONG_MS, 60_000).

suite() ->
    [{timetrap, {seconds, 90}}].

all() ->
    [
        % Start and stop
        is_a_gen_server_registered_under_its_module_name,
        a_second_start_returns_already_started,
        has_a_child_spec_for_maps_and_for_property_lists,
        stop_exits_noproc_when_there_is_no_server,
        stop_takes_names_and_pids,
        % Connections
        returns_the_same_stream_while_the_peer_lives,
        each_send_on_the_stream_is_one_whole_message,
        accepts_every_address_form_of_the_field,
        sends_to_every_address_form_of_the_field,
        accepts_the_address_forms_of_ipv6,
        an_address_without_a_port_means_4433,
        a_host_name_without_a_port_means_4433,
        answers_an_address_that_is_none_with_an_error,
        counts_messages_to_an_address_that_is_none,
        takes_any_binary_as_a_node_id,
        remove_connection_is_ok_for_a_node_that_is_unknown,
        info_has_what_the_contract_names,
        info_gives_the_address_back_unchanged,
        info_tells_the_second_of_the_last_use,
        who_asks_does_not_use_a_connection_that_makes_no_headway,
        info_tells_time_by_the_clock_of_the_vm,
        info_of_an_unknown_node_is_not_found,
        lists_every_connection_the_last_used_first,
        % Messages
        send_async_is_ok_at_once_whatever_happens,
        a_message_is_alone_on_its_stream_with_fin,
        an_empty_message_is_a_message,
        a_message_that_is_none_is_dropped_and_counted,
        a_large_message_arrives_whole,
        send_async_uses_the_pooled_connection,
        % The bare protocol
        the_bare_protocol_works,
        a_bare_cast_carries_any_iodata,
        a_node_id_that_is_none_is_not_in_the_pool,
        any_other_call_is_an_unknown_request,
        other_casts_and_messages_are_ignored,
        takes_any_reference_to_the_server,
        serves_callers_on_another_node
    ].

init_per_testcase(_Case, Config) ->
    ok = mesh_ct:begin_test(),
    Config.

end_per_testcase(_Case, _Config) ->
    mesh_ct:end_test(),
    ok.

%%% Start and stop

is_a_gen_server_registered_under_its_module_name(_Config) ->
    % The pub/sub server of a node finds the pool with whereis/1.
    Pool = mesh_ct:start_pool(),
    ?assertEqual(Pool, whereis(macula_gateway_mesh)),
    Callbacks = [{init, 1}, {handle_call, 3}, {handle_cast, 2}, {handle_info, 2}, {terminate, 2}],
    ?assertEqual([], Callbacks -- ?POOL:module_info(exports)),
    ?assertEqual([gen_server], proplists:get_value(behaviour, ?POOL:module_info(attributes))),
    {status, Pool, {module, gen_server}, _} = sys:get_status(Pool).

a_second_start_returns_already_started(_Config) ->
    % A node with two workers' supervisors must not end up with two pools, or with none.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(),
    Stream = mesh_ct:connect(Pool, Peer),
    ?assertEqual({error, {already_started, Pool}}, ?POOL:start_link(#{})),
    ?assertEqual({error, {already_started, Pool}}, ?POOL:start_link(#{linger_ms => bad})),
    ?assertEqual(Stream, mesh_ct:connect(Pool, Peer)).

has_a_child_spec_for_maps_and_for_property_lists(_Config) ->
    % In Elixir `{:macula_gateway_mesh, opts}' is a child, and opts is often a keyword list.
    Options = #{max_mesh_connections => 3},
    Spec = #{id => ?POOL, start => {?POOL, start_link, [Options]}, shutdown => 5_000},
    ?assertEqual(Spec, ?POOL:child_spec(Options)),
    ?assertEqual(Spec, ?POOL:child_spec([{max_mesh_connections, 3}])),
    Repeated = [{max_mesh_connections, 3}, {max_mesh_connections, 4}],
    ?assertEqual(Spec, ?POOL:child_spec(Repeated)),
    ?assertError(function_clause, ?POOL:child_spec([{max_mesh_connections, 3} | improper])),
    #{start := {_, _, [Lone]}} = ?POOL:child_spec([verify_hostname, {max_mesh_connections, 3}]),
    ?assertEqual(Options#{verify_hostname => true}, Lone),
    ?assertEqual(ok, supervisor:check_childspecs([Spec])),
    Supervisor = mesh_ct:start_supervised([{max_mesh_connections, 3}]),
    Pool = whereis(?POOL),
    ?assertMatch([{?POOL, Pool, worker, [?POOL]}], supervisor:which_children(Supervisor)),
    ?assertEqual(3, mesh_ct:stat(limit)).

stop_exits_noproc_when_there_is_no_server(_Config) ->
    % Shutdown code of nodes catches what gen_server:stop/1 exits with.
    Pool = mesh_ct:start_pool(),
    ?assertEqual(ok, ?POOL:stop(Pool)),
    ?assertNot(is_process_alive(Pool)),
    ?assertEqual(undefined, whereis(?POOL)),
    ?assertExit(noproc, ?POOL:stop(Pool)),
    ?assertExit(noproc, ?POOL:stop(?POOL)).

stop_takes_names_and_pids(_Config) ->
    % Whoever stops the pool may hold any reference to it.
    [
        begin
            {ok, Pool} = ?POOL:start_link(#{}),
            Server = Reference(Pool),
            ?assertEqual(ok, ?POOL:stop(Server)),
            ?assertEqual(undefined, whereis(?POOL))
        end
     || Reference <- [
            fun(Pool) -> Pool end, fun(_) -> ?POOL end, fun(_) -> {?POOL, node()} end
        ]
    ].

%%% Connections

returns_the_same_stream_while_the_peer_lives(_Config) ->
    % Routers keep the stream, and compare it.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(),
    Stream = mesh_ct:connect(Pool, Peer),
    ?assert(is_reference(Stream)),
    Elsewhere = {{127, 0, 0, 1}, 1},
    ?assertEqual({ok, Stream}, ?POOL:get_or_create_connection(Pool, id(Peer), Elsewhere)),
    Same = [mesh_ct:start_task(fun() -> mesh_ct:connect(Pool, Peer) end) || _ <- lists:seq(1, 20)],
    ?assertEqual([Stream], lists:usort([mesh_ct:await(Task) || Task <- Same])),
    ?assertMatch(#{connections_opened := 1}, mesh_peer:wait(Peer, connections_opened, 1)).

each_send_on_the_stream_is_one_whole_message(_Config) ->
    % Receivers in the field take one chunk for one message, and drop what follows in it.
    Peer = mesh_ct:start_peer(),
    Stream = mesh_ct:connect(mesh_ct:start_pool(), Peer),
    [ok = macula_quic:send(Stream, mesh_peer:frame(I, 8 + I)) || I <- lists:seq(0, 99)],
    Stats = mesh_peer:wait(Peer, messages, 100),
    ?assertMatch(#{streams := 100, distinct := 100, corrupt := 0, unframed := 0}, Stats),
    ?assertMatch(#{connections_opened := 1, uni_streams := 0}, Stats).

%% All written forms of `localhost:Port' that nodes hold.
addresses(Port) ->
    Digits = integer_to_list(Port),
    Texts = [
        Start ++ Host ++ ":" ++ Digits ++ Path
     || Host <- ["127.0.0.1", "localhost"],
        {Start, Path} <- [{"", ""}, {"https://", ""}, {"https://", "/"}, {"https://", "/a/b?c=d"}]
    ],
    [
        {{127, 0, 0, 1}, Port},
        {"127.0.0.1", Port},
        {<<"127.0.0.1">>, Port},
        {"localhost", Port},
        {<<"localhost">>, Port}
    ] ++ Texts ++ [list_to_binary(Text) || Text <- Texts].

accepts_every_address_form_of_the_field(_Config) ->
    % The routing tables of a mesh hold all of them.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(),
    Port = mesh_peer:port(Peer),
    Forms = addresses(Port),
    [
        begin
            {ok, Stream} = ?POOL:get_or_create_connection(Pool, term_to_binary(Form), Form),
            ?assertEqual({ok, {{127, 0, 0, 1}, Port}}, macula_quic:peername(Stream))
        end
     || Form <- Forms
    ],
    mesh_peer:wait(Peer, connections_opened, length(Forms)).

sends_to_every_address_form_of_the_field(_Config) ->
    % The RPC router hands over what the routing table holds.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(),
    Forms = addresses(mesh_peer:port(Peer)),
    [
        ok = ?POOL:send_async(Pool, term_to_binary(Form), Form, mesh_peer:frame(Index, 8))
     || {Index, Form} <- lists:enumerate(0, Forms)
    ],
    mesh_peer:wait(Peer, distinct, length(Forms)).

accepts_the_address_forms_of_ipv6(_Config) ->
    % Half of the mesh is reached by IPv6 alone.
    Peer = mesh_ct:start_peer(["--address", "::1"]),
    Pool = mesh_ct:start_pool(),
    Port = mesh_peer:port(Peer),
    Texts = [
        "[::1]:" ++ integer_to_list(Port),
        "https://[::1]:" ++ integer_to_list(Port),
        "https://[::1]:" ++ integer_to_list(Port) ++ "/path"
    ],
    Forms =
        [
            {{0, 0, 0, 0, 0, 0, 0, 1}, Port},
            {<<"::1">>, Port},
            {"::1", Port},
            {<<"[::1]">>, Port},
            {"0:0:0:0:0:0:0:1", Port}
        ] ++ Texts ++ [list_to_binary(Text) || Text <- Texts],
    [
        begin
            {ok, Stream} = ?POOL:get_or_create_connection(Pool, term_to_binary(Form), Form),
            ?assertEqual({ok, {{0, 0, 0, 0, 0, 0, 0, 1}, Port}}, macula_quic:peername(Stream))
        end
     || Form <- Forms
    ],
    mesh_peer:wait(Peer, connections_opened, length(Forms)).

an_address_without_a_port_means_4433(_Config) ->
    % Operators write bare hosts into the lists of seed nodes. A loopback address of this test's own
    % keeps the port free.
    Ip = {127, rand:uniform(250), rand:uniform(250), rand:uniform(250)},
    Host = inet:ntoa(Ip),
    Peer = mesh_ct:start_peer(["--address", Host, "--port", integer_to_list(?DEFAULT_PORT)]),
    Pool = mesh_ct:start_pool(),
    Texts = [Host, "https://" ++ Host, "https://" ++ Host ++ "/", "https://" ++ Host ++ "/a?b#c"],
    Forms = Texts ++ [list_to_binary(Text) || Text <- Texts],
    [
        begin
            {ok, Stream} = ?POOL:get_or_create_connection(Pool, term_to_binary(Form), Form),
            ?assertEqual({ok, {Ip, ?DEFAULT_PORT}}, macula_quic:peername(Stream))
        end
     || Form <- Forms
    ],
    mesh_peer:wait(Peer, connections_opened, length(Forms)).

a_host_name_without_a_port_means_4433(_Config) ->
    % The form `<<"host">>' of the field; a name leads to 127.0.0.1, where somebody may have the
    % port already.
    Args = ["--port", integer_to_list(?DEFAULT_PORT)],
    try mesh_ct:start_peer(Args) of
        Peer ->
            Pool = mesh_ct:start_pool(),
            Forms = [<<"localhost">>, "localhost", <<"https://localhost">>, "https://localhost/x"],
            [
                {ok, _} = ?POOL:get_or_create_connection(Pool, term_to_binary(Form), Form)
             || Form <- Forms
            ],
            mesh_peer:wait(Peer, connections_opened, length(Forms))
    catch
        error:{program_did_not_start, {program_exited, _}} ->
            {skip, "port 4433 of 127.0.0.1 is taken"}
    end.

%% What no routing table should hold, and some do.
no_addresses() ->
    [
        undefined,
        42,
        -1.5,
        <<>>,
        "",
        {},
        {a},
        {a, b, c},
        #{},
        self(),
        make_ref(),
        fun() -> ok end,
        <<1:3>>,
        <<255, 254>>,
        <<"a b">>,
        <<"a\0b">>,
        <<"host:">>,
        <<"host:0">>,
        <<"host:65536">>,
        <<"host:port">>,
        <<"host:1:2">>,
        <<":4433">>,
        <<"[::1">>,
        <<"[::1]4433">>,
        <<"http://host">>,
        <<"https://">>,
        <<"https://user@host:1">>,
        <<"user@host">>,
        "host:99999",
        [a, b],
        ["host", ":1"],
        [$a | $b],
        [-1],
        [16#D800],
        {{127, 0, 0, 1}, 0},
        {{127, 0, 0, 1}, 65_536},
        {{127, 0, 0, 1}, 65_537},
        {{127, 0, 0, 1}, 1 bsl 32 + 4433},
        {"host", 65_537},
        {{127, 0, 0, 1}, -1},
        {{127, 0, 0, 1}, "4433"},
        {{127, 0, 0, 1}, 4433.0},
        {{127, 0, 0, 257}, 4433},
        {{127, 0, 0, -1}, 4433},
        {{127, 0, 0, 1.0}, 4433},
        {{127, 0, 0}, 4433},
        {{0, 0, 0, 0, 0, 0, 0, 65_537}, 4433},
        {{0, 0, 0, 0, 0, 0, 0, 0, 1}, 4433},
        {"", 4433},
        {<<>>, 4433},
        {<<"a b">>, 4433},
        {<<"a/b">>, 4433},
        {"host:1", 4433},
        {<<"https://host">>, 4433},
        {host, 4433},
        {undefined, 4433},
        binary:copy(<<"a">>, 300),
        binary:copy(<<"a">>, 10_000_000),
        lists:duplicate(100_000, $a),
        {{{127, 0, 0, 1}, 4433}, 4433}
    ].

answers_an_address_that_is_none_with_an_error(_Config) ->
    % A bad entry in a routing table must cost its caller a call, not the node its pool.
    Pool = mesh_ct:start_pool(),
    [
        ?assertEqual(
            {error, {connect_failed, {bad_address, Address}}},
            ?POOL:get_or_create_connection(Pool, <<"node">>, Address)
        )
     || Address <- no_addresses()
    ],
    ?assertEqual(Pool, whereis(?POOL)),
    ?assertEqual(0, mesh_ct:stat(dials)).

counts_messages_to_an_address_that_is_none(_Config) ->
    % The sender hears nothing, so the operator has to.
    Pool = mesh_ct:start_pool(),
    Addresses = no_addresses(),
    [ok = ?POOL:send_async(Pool, <<"node">>, Address, <<"m">>) || Address <- Addresses],
    ?assertEqual(#{bad_address => length(Addresses)}, mesh_ct:stat(messages_dropped)),
    [ok = gen_server:cast(Pool, {send_async, <<"n">>, Address, <<"m">>}) || Address <- Addresses],
    ?assertEqual(#{bad_address => 2 * length(Addresses)}, mesh_ct:stat(messages_dropped)),
    ?assertEqual(Pool, whereis(?POOL)),
    ?assertEqual({0, 0}, {mesh_ct:stat(dials), mesh_ct:stat(messages_accepted)}).

takes_any_binary_as_a_node_id(_Config) ->
    % 32 raw bytes in practice, but the pool never looked inside.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(),
    Ids = [<<>>, <<0>>, <<0, 0>>, <<255:256>>, <<"name">>, binary:copy(<<7>>, 65_000)],
    Address = mesh_peer:address(Peer),
    Streams = [
        begin
            {ok, Stream} = ?POOL:get_or_create_connection(Pool, Id, Address),
            Stream
        end
     || Id <- Ids
    ],
    ?assertEqual(length(Ids), length(lists:usort(Streams))),
    {ok, List} = ?POOL:list_connections(Pool),
    ?assertEqual(lists:sort(Ids), lists:sort([Id || {Id, _} <- List])).

remove_connection_is_ok_for_a_node_that_is_unknown(_Config) ->
    % The gateway removes whatever it hears has left, known or not.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(),
    ?assertEqual(ok, ?POOL:remove_connection(Pool, <<"unknown">>)),
    ?assertEqual(0, mesh_ct:stat(removals)),
    mesh_ct:connect(Pool, Peer),
    ?assertEqual(ok, ?POOL:remove_connection(Pool, id(Peer))),
    ?assertEqual(not_found, ?POOL:get_connection_info(Pool, id(Peer))),
    ?assertEqual(ok, ?POOL:remove_connection(Pool, id(Peer))),
    ?assertEqual(1, mesh_ct:stat(removals)).

info_has_what_the_contract_names(_Config) ->
    % Nodes match on these four keys; the others are what operators asked for.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(),
    Stream = mesh_ct:connect(Pool, Peer),
    Address = mesh_peer:address(Peer),
    {ok, Info} = ?POOL:get_connection_info(Pool, id(Peer)),
    #{connection := Connection, stream := Stream, address := Address, last_used := Used} = Info,
    ?assert(is_reference(Connection)),
    ?assert(is_integer(Used)),
    ?assertMatch(#{state := idle, peername := Address, streams := 0}, Info),
    ?assertMatch(#{outstanding_messages := 0, outstanding_bytes := 0, lost_packets := _}, Info),
    #{sent_bytes := Sent, received_bytes := Received, rtt_us := Rtt, mtu_bytes := Mtu} = Info,
    % A client's first packet, and so the least path, is of 1200 bytes (RFC 9000, section 14).
    ?assert(Sent >= 1_200 andalso Received >= 1_200 andalso Mtu >= 1_200 andalso Rtt > 0).

info_gives_the_address_back_unchanged(_Config) ->
    % The routing table compares it with its own entry.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(),
    [
        begin
            Id = term_to_binary(Form),
            {ok, _} = ?POOL:get_or_create_connection(Pool, Id, Form),
            {ok, #{address := Address}} = ?POOL:get_connection_info(Pool, Id),
            ?assertEqual(Form, Address)
        end
     || Form <- addresses(mesh_peer:port(Peer))
    ].

info_tells_the_second_of_the_last_use(_Config) ->
    % Health checks subtract it from erlang:system_time(second).
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(),
    Used = fun() ->
        {ok, #{last_used := Second}} = ?POOL:get_connection_info(Pool, id(Peer)),
        Second
    end,
    Before = erlang:system_time(second),
    mesh_ct:connect(Pool, Peer),
    First = Used(),
    % Two clocks need not agree on when a second begins.
    ?assert(Before - 1 =< First andalso First =< erlang:system_time(second) + 1),
    mesh_wait:eventually(true, fun() -> erlang:system_time(second) > First end),
    ?assertEqual(First, Used()),
    mesh_ct:connect(Pool, Peer),
    Second = Used(),
    ?assert(Second > First),
    mesh_wait:eventually(true, fun() -> erlang:system_time(second) > Second end),
    mesh_ct:send(Pool, Peer, <<"m">>),
    ?assert(Used() > Second).

who_asks_does_not_use_a_connection_that_makes_no_headway(_Config) ->
    % What is sent to a peer that takes nothing waits. When that was is known to half a second,
    % unless the node does not run just then.
    Peer = mesh_ct:start_peer(["--mode", "hoard", "--bidi-streams", "1"]),
    Pool = mesh_ct:start_pool(#{linger_ms => 100, stream_credit_timeout_ms => 60_000}),
    Frame = mesh_peer:frame(0, 8),
    [mesh_ct:send(Pool, Peer, Frame) || _ <- [1, 2]],
    mesh_wait:eventually(1, fun() -> mesh_ct:stat(Pool, messages_delivered) end),
    Tells = fun() ->
        mesh_ct:send(Pool, Peer, Frame),
        Second = erlang:system_time(second),
        mesh_wait:eventually(true, fun() -> erlang:system_time(second) > Second + 2 end),
        {ok, #{last_used := Used}} = ?POOL:get_connection_info(Pool, id(Peer)),
        Used =< Second + 1
    end,
    mesh_wait:eventually(true, Tells).

info_tells_time_by_the_clock_of_the_vm(_Config) ->
    % Which follows the machine's clock slowly when that is set: here it is an hour ahead.
    Peer = mesh_ct:start_peer(),
    Server = mesh_ct:start_pool(),
    mesh_ct:connect(Server, Peer),
    Pool = element(2, sys:get_state(Server)),
    Times = fun(SystemTimeUs) ->
        Info = macula_gateway_mesh_nif:pool_info(Pool, id(Peer), SystemTimeUs),
        {ok, #{last_used := Used, opened_at := Opened}} = Info,
        {Used, Opened}
    end,
    {Used, Opened} = Times(erlang:system_time(microsecond)),
    Ahead = erlang:system_time(microsecond) + 3_600_000_000,
    ?assertEqual({Used + 3_600, Opened + 3_600}, Times(Ahead)).

info_of_an_unknown_node_is_not_found(_Config) ->
    % Nor is there any of a node that is only being dialled.
    Pool = mesh_ct:start_pool(#{connect_timeout_ms => ?LONG_MS}),
    ?assertEqual(not_found, ?POOL:get_connection_info(Pool, <<"unknown">>)),
    ok = ?POOL:send_async(Pool, <<"dialled">>, mesh_peer:silent(), <<"m">>),
    ?assertEqual(1, mesh_ct:stat(dialing)),
    ?assertEqual(not_found, ?POOL:get_connection_info(Pool, <<"dialled">>)).

lists_every_connection_the_last_used_first(_Config) ->
    % Operators look at the pool with it.
    Peers = [mesh_ct:start_peer() || _ <- lists:seq(1, 3)],
    Pool = mesh_ct:start_pool(),
    ?assertEqual({ok, []}, ?POOL:list_connections(Pool)),
    [A, B, C] = Peers,
    [mesh_ct:connect(Pool, Peer) || Peer <- [A, B, C, A]],
    {ok, List} = ?POOL:list_connections(Pool),
    ?assertEqual([id(A), id(C), id(B)], [Id || {Id, _} <- List]),
    [
        begin
            {ok, Info} = ?POOL:get_connection_info(Pool, Id),
            Keys = [connection, stream, address, last_used],
            ?assertEqual(maps:with(Keys, Info), maps:with(Keys, Listed)),
            ?assertEqual(maps:keys(Info), maps:keys(Listed))
        end
     || {Id, Listed} <- List
    ].

%%% Messages

send_async_is_ok_at_once_whatever_happens(_Config) ->
    % The gateway sends from its only process.
    Pool = mesh_ct:start_pool(#{connect_timeout_ms => ?LONG_MS, queue_max_messages => 2}),
    Silent = mesh_peer:silent(),
    [?assertEqual(ok, ?POOL:send_async(Pool, <<"n">>, Silent, <<"m">>)) || _ <- lists:seq(1, 4)],
    ?assertMatch({1, 2}, {mesh_ct:stat(dialing), mesh_ct:stat(outstanding_messages)}),
    ?assertEqual(ok, ?POOL:send_async(Pool, <<"n2">>, nowhere, <<"m">>)),
    ok = ?POOL:stop(Pool),
    ?assertEqual(ok, ?POOL:send_async(Pool, <<"n">>, Silent, <<"m">>)),
    ?assertEqual(ok, ?POOL:send_async(?POOL, <<"n">>, Silent, <<"m">>)),
    ?assertEqual(ok, ?POOL:send_async(no_such_name, <<"n">>, Silent, <<"m">>)).

a_message_is_alone_on_its_stream_with_fin(_Config) ->
    % Receivers in the field read a stream to its end, and lose the second message of one.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(),
    Message = mesh_peer:frame(0, 100),
    mesh_ct:send(Pool, Peer, Message),
    First = mesh_peer:wait(Peer, messages, 1),
    ?assertMatch(#{streams := 1, uni_streams := 0, streams_reset := 0, framed := 1}, First),
    ?assertEqual({payload, Message}, mesh_peer:command(Peer, "last_payload")),
    [mesh_ct:send(Pool, Peer, mesh_peer:frame(I, 100)) || I <- lists:seq(1, 49)],
    Stats = mesh_peer:wait(Peer, messages, 50),
    ?assertMatch(#{streams := 50, distinct := 50, corrupt := 0, bytes := 5_400}, Stats),
    % That nobody reads an answer is said, so that the peer can return its credit.
    mesh_peer:wait(Peer, stop_sending, 50).

an_empty_message_is_a_message(_Config) ->
    % The pool never looks inside, so it cannot know better.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(),
    mesh_ct:send(Pool, Peer, <<>>),
    mesh_ct:send(Pool, Peer, []),
    Stats = mesh_peer:wait(Peer, messages, 2),
    ?assertMatch(#{streams := 2, bytes := 0, streams_reset := 0}, Stats),
    mesh_wait:eventually(2, fun() -> mesh_ct:stat(messages_delivered) end).

a_message_that_is_none_is_dropped_and_counted(_Config) ->
    % A sender whose encoder has failed must not crash in the pool, nor the pool for it.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(),
    {Id, Address} = {id(Peer), mesh_peer:address(Peer)},
    None = [undefined, 42, 1.5, <<1:3>>, [a], [256], [<<"m">> | a], {}, #{}, self()],
    [?assertEqual(ok, ?POOL:send_async(Pool, Id, Address, Message)) || Message <- None],
    ?assertEqual(#{bad_message => length(None)}, mesh_ct:stat(messages_dropped)),
    [ok = gen_server:cast(Pool, {send_async, Id, Address, Message}) || Message <- None],
    ?assertEqual(#{bad_message => 2 * length(None)}, mesh_ct:stat(messages_dropped)),
    ?assertEqual({0, 0}, {mesh_ct:stat(dials), mesh_ct:stat(messages_accepted)}),
    ?assertEqual(ok, ?POOL:send_async(no_such_name, Id, Address, undefined)),
    ?assertEqual(Pool, whereis(?POOL)).

a_large_message_arrives_whole(_Config) ->
    % Nodes hand over whole state transfers; the binary may be garbage before it has left.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(),
    [mesh_ct:send(Pool, Peer, mesh_peer:frame(Index, 1024 * 1024)) || Index <- lists:seq(0, 9)],
    erlang:garbage_collect(),
    Stats = mesh_peer:wait(Peer, messages, 10),
    ?assertMatch(#{distinct := 10, corrupt := 0, streams := 10}, Stats).

send_async_uses_the_pooled_connection(_Config) ->
    % The original dialled for each message.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(),
    [mesh_ct:send(Pool, Peer, mesh_peer:frame(I, 64)) || I <- lists:seq(0, 199)],
    Stream = mesh_ct:connect(Pool, Peer),
    [mesh_ct:send(Pool, Peer, mesh_peer:frame(I, 64)) || I <- lists:seq(200, 299)],
    ok = macula_quic:send(Stream, mesh_peer:frame(300, 64)),
    ?assertMatch(#{connections_opened := 1}, mesh_peer:wait(Peer, distinct, 301)),
    ?assertEqual(1, mesh_ct:stat(dials)).

%%% The bare protocol

the_bare_protocol_works(_Config) ->
    % Some callers of the original spoke to the process directly.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(),
    {Id, Address} = {id(Peer), mesh_peer:address(Peer)},
    ok = gen_server:cast(Pool, {send_async, Id, Address, mesh_peer:frame(0, 8)}),
    {ok, Stream} = gen_server:call(Pool, {get_or_create_connection, Id, Address}),
    ?assertEqual({ok, Stream}, gen_server:call(Pool, {get_or_create_connection, Id, Address})),
    ok = gen_server:cast(Pool, {send_async, Id, Address, mesh_peer:frame(1, 8)}),
    ok = macula_quic:send(Stream, mesh_peer:frame(2, 8)),
    ?assertMatch(#{connections_opened := 1}, mesh_peer:wait(Peer, distinct, 3)),
    Info = gen_server:call(Pool, {get_connection_info, Id}),
    ?assertMatch({ok, #{stream := Stream, address := Address}}, Info),
    ?assertMatch({ok, [{Id, #{stream := Stream}}]}, gen_server:call(Pool, list_connections)),
    ?assertEqual(ok, gen_server:call(Pool, {remove_connection, Id})),
    ?assertEqual(ok, gen_server:call(Pool, {remove_connection, Id})),
    ?assertEqual(not_found, gen_server:call(Pool, {get_connection_info, Id})),
    ?assertEqual({ok, []}, gen_server:call(Pool, list_connections)),
    Bad = {error, {connect_failed, {bad_address, nowhere}}},
    ?assertEqual(Bad, gen_server:call(Pool, {get_or_create_connection, Id, nowhere})).

any_other_call_is_an_unknown_request(_Config) ->
    % A caller of another version gets an answer, and the pool lives on.
    Pool = mesh_ct:start_pool(),
    Address = {{127, 0, 0, 1}, 4433},
    [
        ?assertEqual({error, unknown_request}, gen_server:call(Pool, Request))
     || Request <- [
            hello,
            {hello, world},
            [],
            {get_or_create_connection, <<"n">>},
            {send_async, <<"n">>, Address, <<"m">>}
        ]
    ],
    ?assertEqual(Pool, whereis(?POOL)).

a_node_id_that_is_none_is_not_in_the_pool(_Config) ->
    % As the original has it: a routing table of another version must not crash who asks.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(),
    Address = mesh_peer:address(Peer),
    None = [not_a_binary, "n", 1, <<1:1>>, undefined],
    TooLong = binary:copy(<<7>>, 65_537),
    BadNode = {error, {connect_failed, bad_node_id}},
    [
        begin
            Connect = {get_or_create_connection, Id, Address},
            ?assertEqual(BadNode, ?POOL:get_or_create_connection(Pool, Id, Address)),
            ?assertEqual(BadNode, gen_server:call(Pool, Connect)),
            ?assertEqual(BadNode, ?POOL:send(Pool, Id, Address, <<"m">>, 1_000)),
            ?assertEqual(BadNode, ?POOL:send(Pool, Id, Address, ["m"], 1_000)),
            ?assertEqual(ok, ?POOL:remove_connection(Pool, Id)),
            ?assertEqual(not_found, ?POOL:get_connection_info(Pool, Id)),
            ?assertEqual(ok, ?POOL:send_async(Pool, Id, Address, <<"m">>)),
            ?assertEqual(ok, gen_server:cast(Pool, {send_async, Id, Address, <<"m">>}))
        end
     || Id <- [TooLong | None]
    ],
    % Not even dialled.
    ?assertEqual(#{bad_node_id => 4 * 6}, mesh_ct:stat(messages_dropped)),
    ?assertEqual(0, mesh_ct:stat(dials)),
    Longest = binary:copy(<<7>>, 65_536),
    ?assertMatch({ok, _}, ?POOL:get_or_create_connection(Pool, Longest, Address)),
    ?assertMatch({ok, _}, ?POOL:get_connection_info(Pool, Longest)).

a_bare_cast_carries_any_iodata(_Config) ->
    % Old callers cast what they have put together, and the original passed it on.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(),
    <<Head:2/binary, Rest/binary>> = mesh_peer:frame(0, 8),
    Message = [Head, [[], binary_to_list(Rest)]],
    ok = gen_server:cast(Pool, {send_async, id(Peer), mesh_peer:address(Peer), Message}),
    mesh_peer:wait(Peer, distinct, 1).

other_casts_and_messages_are_ignored(_Config) ->
    % Late replies, exits of linked processes and messages gone astray are a server's daily bread.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(),
    Stream = mesh_ct:connect(Pool, Peer),
    Address = mesh_peer:address(Peer),
    Strays = [
        hello,
        {hello, world},
        [],
        {send_async, <<"n">>, Address},
        {send_async, not_a_binary, Address, <<"m">>},
        {send_async, <<"n">>, Address, 42},
        {remove_connection, id(Peer)}
    ],
    [ok = gen_server:cast(Pool, Stray) || Stray <- Strays],
    [Pool ! Stray || Stray <- Strays],
    [
        Pool ! Message
     || Message <- [
            {make_ref(), late_reply},
            {mesh_connected, forged, reply},
            {mesh_connected, {make_ref(), forged}, reply},
            {'DOWN', make_ref(), process, self(), gone},
            {'EXIT', Peer, killed},
            {timeout, make_ref(), tick},
            {mesh_event, unheard_of},
            {mesh_closed, make_ref(), ok},
            {quic, closed, make_ref(), #{}}
        ]
    ],
    Linked = mesh_ct:start_task(fun() ->
        link(Pool),
        exit(crash)
    end),
    ?assertEqual({exit, crash}, mesh_ct:await(Linked)),
    Call = {get_or_create_connection, id(Peer), Address},
    ?assertEqual({ok, Stream}, gen_server:call(Pool, Call)),
    ?assertEqual({Pool, 1}, {whereis(?POOL), mesh_ct:stat(size)}).

takes_any_reference_to_the_server(_Config) ->
    % The gateway keeps a pid, the pub/sub server asks whereis/1, others use the name.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(),
    Stream = mesh_ct:connect(Pool, Peer),
    {Id, Address} = {id(Peer), mesh_peer:address(Peer)},
    [
        begin
            ok = ?POOL:send_async(Server, Id, Address, mesh_peer:frame(Index, 8)),
            ?assertEqual({ok, Stream}, ?POOL:get_or_create_connection(Server, Id, Address)),
            ?assertMatch({ok, #{stream := Stream}}, ?POOL:get_connection_info(Server, Id)),
            ?assertMatch({ok, [_]}, ?POOL:list_connections(Server)),
            ?assertEqual(ok, ?POOL:remove_connection(Server, <<"unknown">>)),
            ?assertEqual(1, ?POOL:pool_size(Server)),
            ?assertMatch({ok, #{size := 1}}, ?POOL:get_stats(Server)),
            ?assertEqual(ok, ?POOL:set_max_connections(Server, 5))
        end
     || {Index, Server} <- [{0, Pool}, {1, ?POOL}, {2, {?POOL, node()}}]
    ],
    mesh_peer:wait(Peer, distinct, 3).

serves_callers_on_another_node(_Config) ->
    % Workers on one node use the pool of another. Without epmd, which may not be there: the two
    % know each other's port, which only the first listens at.
    {Far, FarNode, Args} = start_far_node(5),
    {Near, _NearNode} = start_node("near", ["-dist_listen", "false" | Args]),
    Peer = mesh_ct:start_peer(),
    {Id, Address} = {id(Peer), mesh_peer:address(Peer)},
    {ok, Pool} = peer:call(Far, ?MODULE, start_unlinked, [#{}]),
    true = peer:call(Near, net_kernel, connect_node, [FarNode]),
    [
        begin
            Call = fun(Function, Arguments) ->
                peer:call(Near, ?POOL, Function, [Server | Arguments])
            end,
            ok = Call(send_async, [Id, Address, mesh_peer:frame(2 * Index, 8)]),
            {ok, Stream} = Call(get_or_create_connection, [Id, Address]),
            ?assertEqual({ok, Stream}, Call(get_or_create_connection, [Id, Address])),
            Send = [Stream, mesh_peer:frame(2 * Index + 1, 8)],
            ok = peer:call(Near, erpc, call, [FarNode, macula_quic, send, Send]),
            ?assertMatch({ok, #{stream := Stream}}, Call(get_connection_info, [Id])),
            ?assertMatch({ok, [{Id, _}]}, Call(list_connections, [])),
            Bad = {error, {connect_failed, {bad_address, nowhere}}},
            ?assertEqual(Bad, Call(get_or_create_connection, [<<"other">>, nowhere])),
            mesh_peer:wait(Peer, distinct, 2 * Index + 2),
            ?assertEqual(ok, Call(remove_connection, [Id])),
            ?assertEqual(not_found, Call(get_connection_info, [Id]))
        end
     || {Index, Server} <- [{0, {?POOL, FarNode}}, {1, Pool}]
    ],
    ?assertMatch(#{connections_opened := 2}, mesh_peer:stats(Peer)),
    peer:stop(Near),
    peer:stop(Far).

%%% What the tests share

id(Peer) -> mesh_ct:node_id(Peer).

%% A node at a port of its own, which may be somebody's again before it listens there; and what
%% another one needs to find it.
start_far_node(Tries) ->
    {ok, Socket} = gen_tcp:listen(0, []),
    {ok, Port} = inet:port(Socket),
    ok = gen_tcp:close(Socket),
    Args = ["-setcookie", "mesh", "-start_epmd", "false", "-erl_epmd_port", integer_to_list(Port)],
    try start_node("far", Args) of
        {Control, Node} -> {Control, Node, Args}
    catch
        exit:{boot_failed, {exit_status, _}} when Tries > 1 -> start_far_node(Tries - 1)
    end.

start_node(Role, Args) ->
    Name = list_to_atom(Role ++ "-" ++ os:getpid()),
    Paths = lists:append([["-pa", Path] || Path <- code:get_path(), filelib:is_dir(Path)]),
    Options = #{
        name => Name, host => "127.0.0.1", longnames => true, connection => standard_io
    },
    {ok, Control, Node} = peer:start_link(Options#{args => Args ++ Paths}),
    {Control, Node}.

%% In the other node: the pool must outlive the process that carries out the call.
start_unlinked(Options) ->
    {ok, Pool} = ?POOL:start_link(Options),
    unlink(Pool),
    {ok, Pool}.
